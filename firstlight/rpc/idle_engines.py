"""Which of some engines has nothing to do, as they say themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from firstlight.contracts.migrations import MovingInstance
from firstlight.domain.errors import FirstlightError
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient

ANSWERS_WITHIN_S = 1.0


class IdleEngines:
    """Asks all at once; one that does not answer in time is not idle."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def find(self, instances: Sequence[MovingInstance]) -> MovingInstance | None:
        """The first of these that serves its epoch and has no request, waiting or on its way."""
        found = await asyncio.gather(*(self._is_idle(one) for one in instances))
        return next((one for one, is_idle in zip(instances, found, strict=True) if is_idle), None)

    async def _is_idle(self, instance: MovingInstance) -> bool:
        client = InferenceClient(self._channels, instance.endpoint)
        try:
            status = await client.status(timeout_s=ANSWERS_WITHIN_S)
        except FirstlightError:
            return False
        is_same = (status.instance_id, status.epoch) == (instance.instance_id, instance.epoch)
        has_work = status.running or status.waiting or status.sessions
        return is_same and status.state == "ready" and not has_work

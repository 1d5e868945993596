"""What engines have to do now, as they say themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.domain.errors import FirstlightError
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from firstlight.rpc.engine_pb2 import EngineStatusReply

# A client waits behind the question.
ANSWERS_WITHIN_S = 0.5


class EngineLoads:
    """Asks all at once; who does not answer in time, or serves no more, is not known (None)."""

    def __init__(self, channels: Channels, *, within_s: float = ANSWERS_WITHIN_S) -> None:
        self._channels = channels
        self._within_s = within_s

    async def ask(self, instances: Sequence[MovingInstance]) -> Mapping[str, EngineLoad | None]:
        found = await asyncio.gather(*(self._ask(one) for one in instances))
        return {one.instance_id: load for one, load in zip(instances, found, strict=True)}

    async def _ask(self, instance: MovingInstance) -> EngineLoad | None:
        client = InferenceClient(self._channels, instance.endpoint)
        try:
            status = await client.status(timeout_s=self._within_s)
        except FirstlightError:
            return None
        is_same = (status.instance_id, status.epoch) == (instance.instance_id, instance.epoch)
        return load_of(status) if is_same and status.state == "ready" else None


def load_of(status: EngineStatusReply) -> EngineLoad:
    # A session on its way to it is a request too.
    requests = status.running + status.waiting + status.sessions
    return EngineLoad(
        instance_id=status.instance_id,
        requests=requests,
        tokens=status.request_tokens,
        idle_s=None if requests else status.idle_s,
    )

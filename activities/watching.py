"""watch_instance: waits, without polling, until an engine has been idle for long enough or is gone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from firstlight.contracts.instances import WatchInput, WatchReceipt
from firstlight.domain.errors import EngineGone, NotFound, StaleEpoch, StartTimeout
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, InferenceClient

# An engine that its supervisor calls alive but that answers nobody for so long is taken for gone.
UNANSWERED_S = 20.0
# A new instance must see its first request before it can be called idle, whatever the keep-alive time.
SHORTEST_IDLE_S = 1.0
NEVER_IDLE_S = 1e9


@dataclass(frozen=True, slots=True)
class Watch:
    channels: Channels
    host: HostClient

    async def run(self, request: WatchInput) -> WatchReceipt:
        deadline_s = time.monotonic() + request.at_most_s
        silent_since_s: float | None = None
        while (left_s := deadline_s - time.monotonic()) > 0:
            began_s = time.monotonic()
            try:
                return WatchReceipt("idle", await self._until_idle(request, left_s))
            except StartTimeout:
                break
            except (StaleEpoch, NotFound):
                # That address belongs to another instance now.
                return WatchReceipt("exited")
            except EngineGone:
                # The call was up for a while: the silence is a new one.
                if silent_since_s is None or time.monotonic() - began_s > 1.0:
                    silent_since_s = time.monotonic()
                is_silent = time.monotonic() - silent_since_s > UNANSWERED_S
                if is_silent or await self._has_ended(request):
                    await self.channels.forget(request.endpoint)
                    return WatchReceipt("exited")
            await asyncio.sleep(0.2)
        return WatchReceipt("elapsed")

    async def _until_idle(self, request: WatchInput, timeout_s: float) -> float:
        idle_s = NEVER_IDLE_S if request.ignore_idle else max(request.keep_alive_s, SHORTEST_IDLE_S)
        engine = InferenceClient(self.channels, request.endpoint)
        return (await engine.wait_idle(epoch=request.epoch, idle_s=idle_s, timeout_s=timeout_s)).idle_s

    async def _has_ended(self, request: WatchInput) -> bool:
        """What the supervisor says; one that is itself away (restarting) is no proof."""
        try:
            engines = (await self.host.list_engines()).engines
        except (EngineGone, StartTimeout):
            return False
        return not any(
            engine.instance_id == request.instance_id
            and engine.epoch == request.epoch
            and engine.state != "exited"
            for engine in engines
        )

"""Letting instances go that are more than needed: requests are gathered on the others until they fall idle.

Nothing is stopped here. An instance that gets no more requests is idle, and its own workflow ends it after
its keep-alive time; should the others be full, it gets requests again. A lane's figures are this process's
own: with several replicas of the API each gathers its own requests, all on the same instances. Those that the
model's minimum keeps anyway are all used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from api.routing.lane import Lane
from api.routing.route_table import RouteTable
from firstlight.domain.autoscaling.scaling import Demand, ScalingMemory, ScalingPolicy

LOOK_EVERY_S = 1.0


class ScaleIn:
    def __init__(
        self,
        *,
        table: RouteTable,
        scaling: ScalingPolicy,
        min_instances_of: Callable[[str], int] = lambda model: 0,
    ) -> None:
        self._table = table
        self._scaling = scaling
        self._min_instances_of = min_instances_of
        self._memories: dict[str, ScalingMemory] = {}

    async def run(self) -> None:
        """Never returns; cancel it to stop."""
        while True:
            self.look(now_s=time.monotonic())
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self, *, now_s: float) -> None:
        for lane in self._table.lanes:
            self._look_at(lane, now_s)

    def _look_at(self, lane: Lane, now_s: float) -> None:
        ready = len(lane.routes)
        if ready < 2:
            lane.gathered_on = None
            self._memories.pop(lane.model, None)
            return
        demand = Demand(
            now_s=now_s,
            running=lane.running,
            waiting=lane.waiting,
            ready=min(ready, lane.gathered_on or ready),
            starting=0,
            max_concurrency=lane.places_each,
            min_instances=min(ready, max(1, self._min_instances_of(lane.model))),
            max_instances=ready,
        )
        scaling = self._scaling.decide(demand, self._memories.get(lane.model, ScalingMemory()))
        self._memories[lane.model] = scaling.memory
        lane.gathered_on = scaling.instances

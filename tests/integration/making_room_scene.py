"""A start that an instance on its host gives way to, in the small world of workflows."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from migration_scene import Scene

from firstlight.contracts import naming
from firstlight.contracts.starts import BringUpInput, BringUpReceipt, PhaseSeconds, PlannedVictim, StartPlan


def wanting_room(scene: Scene, *, moves: bool) -> StartPlan:
    """A start on host a that the scene's source gives way to: by ending, or by moving to host b."""
    source, here = scene.source, scene.here
    victim = PlannedVictim(
        instance_id=source.instance_id,
        epoch=source.epoch,
        host_id=source.host_id,
        endpoint="127.0.0.1:4000",
        model=source.model,
        seconds=0.4,
    )
    if moves:
        migration_id = naming.migration_workflow_id(source.instance_id, 1)
        victim = replace(victim, migration_id=migration_id, destination=scene.destination)
        here.started += [
            migration_id,
            naming.cold_start_id(source.model, scene.destination.instance_id),
            naming.instance_workflow_id(scene.destination.instance_id),
        ]
    plan = here.plan("a", epoch=20, instance=f"new-{here.run_id}")
    return replace(plan, model="other", victims=[victim], awaits_gpus=True)


class Gpu:
    """What bring_up of the start on host a waits for, as the books would tell it."""

    def __init__(self, scene: Scene, start: StartPlan) -> None:
        self.is_free = asyncio.Event()
        self.is_awaited = asyncio.Event()
        self._start = start
        scene.here.host("a").script.then("bring_up", self._bring_up)

    async def _bring_up(self, request: BringUpInput) -> BringUpReceipt:
        assert request.plan.instance_id == self._start.instance_id and request.plan.awaits_gpus
        self.is_awaited.set()
        await self.is_free.wait()
        return BringUpReceipt("127.0.0.1:4001", PhaseSeconds(load_s=0.3, free_s=0.2, total_s=0.6, tier="ssd"))


async def never(request: object) -> BringUpReceipt:
    await asyncio.Event().wait()
    raise AssertionError("it waits for ever")

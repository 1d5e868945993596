"""Scenarios of starts that others give way to."""

from __future__ import annotations

from dataclasses import replace

from acting import ended
from making_room_scene import Gpu, never, wanting_room
from migration_scene import Scene
from workflow_world import World, eventually

from firstlight.contracts import naming
from firstlight.contracts.starting import cancel_start
from firstlight.contracts.starts import ReplanReceipt
from firstlight.domain.errors import Conflict


async def cold_start_in_place_of_an_idle_instance(here: World) -> list[str]:
    scene = await _scene(here)
    start = wanting_room(scene, moves=False)
    gpu = Gpu(scene, start)
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.control.script.requests("evict_instance"))
    gpu.is_free.set()
    await handle.result()
    return [handle.id]


async def cold_start_in_place_of_one_that_stays(here: World) -> list[str]:
    scene = await _scene(here)
    start = wanting_room(scene, moves=False)
    Gpu(scene, start)
    here.control.script.then("evict_instance", Conflict("it has something to do again"))
    elsewhere = replace(here.plan("b", epoch=21, instance=start.instance_id), model=start.model)
    here.control.script.then("replan_start", ReplanReceipt(plan=elsewhere))
    handle = await here.start(start)
    await handle.result()
    return [handle.id]


async def cold_start_in_place_of_a_busy_instance(here: World) -> list[str]:
    """Its requests move; the second history is the migration's."""
    scene = await _scene(here)
    start = wanting_room(scene, moves=True)
    gpu = Gpu(scene, start)
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.control.script.requests("finish_migration"))
    gpu.is_free.set()
    await handle.result()
    return [handle.id, _migration_id(scene)]


async def cold_start_that_joins_a_migration(here: World) -> list[str]:
    scene = await _scene(here)
    start = wanting_room(scene, moves=True)
    gpu = Gpu(scene, start)
    here.host("b").script.then("bring_up", never)
    await scene.begin()
    await eventually(lambda: here.host("b").script.requests("bring_up"))
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.control.script.requests("join_migration"))
    gpu.is_free.set()
    await handle.result()
    return [handle.id]


async def cold_start_that_calls_a_migration_off(here: World) -> list[str]:
    """It is cancelled; the second history is the migration's."""
    scene = await _scene(here)
    start = wanting_room(scene, moves=True)
    gpu = Gpu(scene, start)
    here.host("b").script.then("bring_up", never)
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.host("b").script.requests("bring_up"))
    await cancel_start(here.client, model=start.model, instance_id=start.instance_id)
    await ended(handle.result())
    return [handle.id, _migration_id(scene)]


async def _scene(here: World) -> Scene:
    scene = Scene(here)
    await scene.run_source()
    return scene


def _migration_id(scene: Scene) -> str:
    return naming.migration_workflow_id(scene.source.instance_id, 1)

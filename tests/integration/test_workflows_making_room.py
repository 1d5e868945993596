"""ColdStart that others give way to, under real Temporal: room is made beside the bytes, or undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from making_room_scene import Gpu, never, wanting_room
from migration_scene import Scene
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from workflow_world import World, eventually, world

from firstlight.contracts import naming
from firstlight.contracts.migrations import MoveReceipt
from firstlight.contracts.starting import cancel_start
from firstlight.contracts.starts import (
    BringUpReceipt,
    ReplanReceipt,
    StartPlan,
)
from firstlight.domain.errors import AttachFailed, Conflict, NoCapacity
from firstlight.launcher.embedded.temporal import EmbeddedTemporal


@pytest_asyncio.fixture
async def here(temporal_server: EmbeddedTemporal) -> AsyncIterator[World]:
    async with world(await Client.connect(temporal_server.address)) as made:
        yield made


@pytest_asyncio.fixture
async def scene(here: World) -> Scene:
    made = Scene(here)
    await made.run_source()
    here.host("a").script.calls.clear()
    return made


def replanned(scene: Scene) -> StartPlan:
    return replace(scene.here.plan("b", epoch=21, instance=f"new-{scene.here.run_id}"), model="other")


async def test_an_idle_instance_is_ended_while_the_bytes_come(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=False)
    gpu = Gpu(scene, start)
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.control.script.requests("evict_instance"))
    [evicted] = here.control.script.requests("evict_instance")
    assert (evicted.instance_id, evicted.epoch) == (scene.source.instance_id, scene.source.epoch)
    assert "made room for other" in evicted.reason
    gpu.is_free.set()
    result = await handle.result()
    assert (result.host_id, result.plans_tried) == (here.host_id("a"), 1)
    [recorded] = [one for one in here.control.script.requests("record_start") if one.plan.model == "other"]
    assert recorded.phases.free_s == 0.2
    told = (await handle.query("__temporal_workflow_metadata")).current_details
    assert "room made after" in told and "predicted 0.40 s" in told and "| free |" in told


async def test_a_busy_instance_moves_and_then_the_start_has_its_gpu(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=True)
    gpu = Gpu(scene, start)
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    migration = here.client.get_workflow_handle(naming.migration_workflow_id(scene.source.instance_id, 1))
    await eventually(lambda: here.control.script.requests("finish_migration"))
    assert (await migration.describe()).typed_search_attributes[naming.SOURCE_HOST] == here.host_id("a")
    gpu.is_free.set()
    await handle.result()
    assert scene.ended().state == "completed"
    [moved] = here.host("a").script.requests("move_requests")
    assert moved.source.instance_id == scene.source.instance_id
    assert await scene.status_of(scene.destination.instance_id) is WorkflowExecutionStatus.RUNNING
    assert await scene.status_of(start.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_one_that_has_something_to_do_again_is_spared_and_another_plan_made(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=False)
    gpu = Gpu(scene, start)
    here.control.script.then("evict_instance", Conflict("it has something to do again"))
    here.control.script.then("replan_start", ReplanReceipt(plan=replanned(scene)))
    result = await (await here.start(start)).result()
    assert not gpu.is_free.is_set()
    assert (result.host_id, result.plans_tried) == (here.host_id("b"), 2)
    [asked] = here.control.script.requests("replan_start")
    # Its host did nothing wrong: only the instance is spared.
    assert (asked.failed_hosts, asked.spared) == ([], [scene.source.instance_id])
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_a_failed_migration_ends_the_plan_and_its_source_serves_on(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=True)
    Gpu(scene, start)
    here.host("a").script.then("move_requests", MoveReceipt(failed=1, error="the link broke"))
    with pytest.raises(WorkflowFailureError):
        await (await here.start(start)).result()
    [asked] = here.control.script.requests("replan_start")
    assert asked.spared == [scene.source.instance_id]
    assert "the link broke" in asked.failure
    [abandoned] = here.control.script.requests("abandon_start")
    assert abandoned.plan.instance_id == start.instance_id
    # No failure of the start: whoever waits for it waits on.
    assert abandoned.failure_code == NoCapacity.code
    assert len(here.control.script.requests("serve_on")) == 1
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_a_start_that_fails_calls_its_migrations_off(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=True)
    moving = asyncio.Event()

    async def for_ever(request: object) -> MoveReceipt:
        moving.set()
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")

    async def fails(request: object) -> BringUpReceipt:
        await moving.wait()
        raise AttachFailed("bytes refused")

    here.host("a").script.then("move_requests", for_ever)
    here.host("a").script.then("bring_up", fails)
    with pytest.raises(WorkflowFailureError):
        await (await here.start(start)).result()
    assert scene.ended().state == "cancelled"
    assert len(here.control.script.requests("serve_on")) == 1
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING
    # The destination has nothing to do any more.
    handle = here.client.get_workflow_handle(naming.instance_workflow_id(scene.destination.instance_id))
    async with asyncio.timeout(15):
        await handle.result()


async def test_a_cancelled_start_calls_everything_off(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=True)
    gpu = Gpu(scene, start)
    here.host("b").script.then("bring_up", never)
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.host("b").script.requests("bring_up"))
    await cancel_start(here.client, model="other", instance_id=start.instance_id)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert scene.ended().state == "cancelled"
    abandoned = {one.plan.instance_id for one in here.control.script.requests("abandon_start")}
    assert abandoned == {start.instance_id, scene.destination.instance_id}
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_a_migration_that_runs_already_is_joined(scene: Scene) -> None:
    here, start = scene.here, wanting_room(scene, moves=True)
    gpu = Gpu(scene, start)
    here.host("b").script.then("bring_up", never)
    await scene.begin()
    await eventually(lambda: here.host("b").script.requests("bring_up"))
    handle = await here.start(start)
    await gpu.is_awaited.wait()
    await eventually(lambda: here.control.script.requests("join_migration"))
    gpu.is_free.set()
    await handle.result()

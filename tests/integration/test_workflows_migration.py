"""LiveMigration under real Temporal: what is begun is finished, or the source never noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from migration_scene import Scene
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from workflow_world import World, world

from firstlight.contracts import naming
from firstlight.contracts.failures import error_of
from firstlight.contracts.instances import BeginDrainReceipt
from firstlight.contracts.migrations import MoveReceipt, MovingInstance
from firstlight.domain.errors import AttachFailed, EngineGone, MigrationFailed
from firstlight.launcher.embedded.temporal import EmbeddedTemporal


@pytest_asyncio.fixture
async def here(temporal_server: EmbeddedTemporal) -> AsyncIterator[World]:
    async with world(await Client.connect(temporal_server.address)) as made:
        yield made


@pytest_asyncio.fixture
async def scene(here: World) -> Scene:
    made = Scene(here)
    await made.run_source()
    return made


async def test_a_migration_ends_the_source_and_leaves_the_destination(scene: Scene) -> None:
    here = scene.here
    result = await here.client.get_workflow_handle(await scene.begin()).result()
    assert result["destination_host_id"] == here.host_id("b")
    assert here.host("a").script.requests("move_requests")[0].destination.endpoint == "127.0.0.1:4000"
    assert scene.ended().state == "completed" and scene.ended().move.moved == 2
    await has_ended(scene, scene.source.instance_id)
    assert await scene.status_of(scene.destination.instance_id) is WorkflowExecutionStatus.RUNNING
    stops = here.host("a").script.requests("stop_instance")
    assert [stop.instance_id for stop in stops] == [scene.source.instance_id]
    assert here.control.script.requests("serve_on") == []


async def has_ended(scene: Scene, instance_id: str) -> None:
    handle = scene.here.client.get_workflow_handle(naming.instance_workflow_id(instance_id))
    async with asyncio.timeout(10):
        await handle.result()


async def test_the_temporal_ui_tells_its_story(scene: Scene) -> None:
    here = scene.here
    handle = here.client.get_workflow_handle(await scene.begin())
    await handle.result()
    found = await handle.describe()
    attributes = found.typed_search_attributes
    assert attributes[naming.SOURCE_HOST] == here.host_id("a")
    assert attributes[naming.HOST] == here.host_id("b")
    assert attributes[naming.OUTCOME] == "completed"
    story = await found.static_summary()
    assert story is not None and "an operator asked" in story
    told = (await handle.query("__temporal_workflow_metadata")).current_details
    cells = [cell.strip() for cell in told.replace("\u00a0", " ").split("|")]
    assert " 1 2 600 9.00 0.200 " in " ".join(cells) and "Longest stand-still **12 ms**" in told


async def test_a_destination_that_does_not_start_costs_the_source_nothing(scene: Scene) -> None:
    here = scene.here
    here.host("b").script.then("bring_up", AttachFailed("bytes refused"))
    with pytest.raises(WorkflowFailureError) as failure:
        await here.client.get_workflow_handle(await scene.begin()).result()
    assert isinstance(error_of(failure.value.cause), MigrationFailed)
    assert scene.ended().state == "failed"
    assert here.control.script.requests("begin_drain") == []
    [abandoned] = here.control.script.requests("abandon_start")
    assert abandoned.plan.instance_id == scene.destination.instance_id
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_an_idle_instance_is_reused_and_outlives_a_failure(scene: Scene) -> None:
    here = scene.here
    await (await here.start(scene.destination)).result()
    starts = len(here.host("b").script.requests("bring_up"))
    there = scene.destination
    reused = MovingInstance(there.instance_id, there.epoch, there.host_id, "127.0.0.1:4000")
    here.host("a").script.then("move_requests", MoveReceipt(failed=1, error="the link broke"))
    with pytest.raises(WorkflowFailureError):
        await here.client.get_workflow_handle(await scene.begin(reused=reused)).result()
    [moved] = here.host("a").script.requests("move_requests")
    assert moved.destination == reused
    assert len(here.host("b").script.requests("bring_up")) == starts
    for instance in (scene.source, scene.destination):
        assert await scene.status_of(instance.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_requests_that_stay_keep_their_source(scene: Scene) -> None:
    """The destination died while they moved: the source gets its route back, the destination goes."""
    here = scene.here
    here.host("a").script.then("move_requests", MoveReceipt(failed=2, error="the destination died"))
    with pytest.raises(WorkflowFailureError):
        await here.client.get_workflow_handle(await scene.begin()).result()
    [served] = here.control.script.requests("serve_on")
    assert served.source.instance_id == scene.source.instance_id
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING
    await has_ended(scene, scene.destination.instance_id)
    assert "the destination died" in scene.ended().failure


async def test_a_destination_that_serves_some_already_stays(scene: Scene) -> None:
    here = scene.here
    receipt = MoveReceipt(handed_over=1, failed=1, error="the link broke")
    here.host("a").script.then("move_requests", receipt)
    with pytest.raises(WorkflowFailureError):
        await here.client.get_workflow_handle(await scene.begin()).result()
    for instance in (scene.source, scene.destination):
        assert await scene.status_of(instance.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_a_move_whose_activity_dies_is_tried_again(scene: Scene) -> None:
    here = scene.here
    here.host("a").script.then("move_requests", EngineGone("the agent was restarted"))
    await here.client.get_workflow_handle(await scene.begin()).result()
    assert len(here.host("a").script.requests("move_requests")) == 2
    assert scene.ended().state == "completed"


async def test_a_source_that_ends_meanwhile_is_not_emptied(scene: Scene) -> None:
    here = scene.here
    here.control.script.then("begin_drain", BeginDrainReceipt(draining=False, state="stopped"))
    with pytest.raises(WorkflowFailureError):
        await here.client.get_workflow_handle(await scene.begin()).result()
    assert here.host("a").script.requests("move_requests") == []
    # Its requests go on elsewhere, and the destination is where they find room.
    assert await scene.status_of(scene.destination.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_a_cancelled_migration_leaves_the_source_serving(scene: Scene) -> None:
    here = scene.here
    moving = asyncio.Event()

    async def for_ever(request: object) -> MoveReceipt:
        moving.set()
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")

    here.host("a").script.then("move_requests", for_ever)
    handle = here.client.get_workflow_handle(await scene.begin())
    await moving.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert scene.ended().state == "cancelled"
    assert len(here.control.script.requests("serve_on")) == 1
    assert await scene.status_of(scene.source.instance_id) is WorkflowExecutionStatus.RUNNING


async def test_asking_twice_is_asking_once(scene: Scene) -> None:
    first = await scene.begin()
    assert await scene.begin() == first
    await scene.here.client.get_workflow_handle(first).result()
    assert len(scene.here.host("a").script.requests("move_requests")) == 1

"""ColdStart under real Temporal: what a client, an operator and the GPUs get out of every way it can go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from workflow_world import World, eventually, world

from firstlight.contracts import naming
from firstlight.contracts.failures import error_of
from firstlight.contracts.starting import LOADING, cancel_start
from firstlight.contracts.starts import (
    BringUpReceipt,
    DownloadReceipt,
    Nothing,
    PhaseSeconds,
    ReplanReceipt,
)
from firstlight.domain.errors import (
    AttachFailed,
    ChecksumMismatch,
    DiskFull,
    EngineGone,
    SourceCorrupt,
    StartFailed,
)
from firstlight.launcher.embedded.temporal import EmbeddedTemporal


@pytest_asyncio.fixture
async def client(temporal_server: EmbeddedTemporal) -> Client:
    return await Client.connect(temporal_server.address)


@pytest_asyncio.fixture
async def here(client: Client) -> AsyncIterator[World]:
    async with world(client) as made:
        yield made


async def test_a_start_from_ssd_is_one_host_activity_and_hands_its_instance_over(here: World) -> None:
    handle = await here.start(here.plan())
    result = await handle.result()

    assert (result.host_id, result.endpoint, result.plans_tried) == (
        here.host_id("a"),
        "127.0.0.1:4000",
        1,
    )
    assert [name for name, _ in here.host().script.calls if name != "watch_instance"] == ["bring_up"]
    recorded = here.control.script.requests("record_start")
    assert [request.phases for request in recorded] == [result.phases]
    instance = naming.instance_workflow_id(result.instance_id)
    assert await here.status(instance) is WorkflowExecutionStatus.RUNNING
    assert here.control.script.requests("abandon_start") == []


async def test_the_page_of_a_start_tells_its_story(here: World) -> None:
    handle = await here.start(here.plan())
    await handle.result()
    found = await handle.describe()

    assert "predicted 0.45 s" in (await found.static_summary() or "")
    assert "| host-a | 0.45 |" in (await found.static_details() or "")
    attributes = found.typed_search_attributes
    assert attributes[naming.MODEL] == "smollm2"
    assert attributes[naming.HOST] == here.host_id("a")
    assert (attributes[naming.PHASE], attributes[naming.OUTCOME]) == ("done", "ready")
    assert (attributes[naming.ESTIMATED_MS], attributes[naming.ACTUAL_MS]) == (450, 420)
    metadata = await handle.query("__temporal_workflow_metadata")
    assert "| load | 0.300 | 0.310 | +0.010 |" in metadata.current_details


async def for_ever(_: object) -> object:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_remote_start_is_brought_up_beside_its_download(here: World) -> None:
    """Ready before the last byte is on SSD; the download goes on for those who come later."""
    host = here.host()
    may_end = asyncio.Event()

    async def wait(request: object) -> object:
        await may_end.wait()
        return receipt

    receipt = DownloadReceipt("smollm2@abcd1234", "e" * 64, 540_000_000, 270_000_000, 1.0, False)
    host.script.then("download_checkpoint", wait)
    result = await (await here.start(here.plan(tier="remote"))).result()
    assert result.endpoint == "127.0.0.1:4000"
    [brought] = host.script.requests("bring_up")
    assert brought.fetch and brought.download_s == 0
    download = naming.download_id("smollm2@abcd1234", here.host_id("a"))
    assert await here.status(download) is WorkflowExecutionStatus.RUNNING
    may_end.set()
    await here.client.get_workflow_handle(download).result()


async def test_bring_up_may_outlast_the_download(here: World) -> None:
    host = here.host()
    may_end = asyncio.Event()

    async def wait(_: object) -> object:
        await may_end.wait()
        return BringUpReceipt("127.0.0.1:4000", PhaseSeconds(download_s=2.0, total_s=2.5, tier="remote"))

    host.script.then("bring_up", wait)
    handle = await here.start(here.plan(tier="remote"))
    download = here.client.get_workflow_handle(naming.download_id("smollm2@abcd1234", here.host_id("a")))
    await eventually(lambda: host.script.requests("download_checkpoint"))
    await download.result()
    may_end.set()
    result = await handle.result()
    assert (result.plans_tried, result.phases.download_s) == (1, 2.0)
    assert len(host.script.requests("bring_up")) == 1


async def test_a_download_that_finds_its_source_again_ends_in_a_start(here: World) -> None:
    host = here.host()
    host.script.then("bring_up", DiskFull("no room for a copy"))
    result = await (await here.start(here.plan(tier="remote"))).result()
    beside, after = host.script.requests("bring_up")
    assert (beside.fetch, after.fetch) == (True, False)
    assert after.download_s > 0 and after.plan.checkpoint.manifest_digest == "d" * 64
    assert (result.plans_tried, result.phases.download_s) == (1, after.download_s)


async def test_two_starts_of_one_checkpoint_on_a_host_share_its_download(here: World) -> None:
    host = here.host()
    may_end = asyncio.Event()

    async def wait(request: object) -> object:
        await may_end.wait()
        return await host.script.play("the rest of it", request, receipt)

    async def wait_too(_: object) -> object:
        await may_end.wait()
        return BringUpReceipt("127.0.0.1:4000", PhaseSeconds(total_s=1.0))

    receipt = DownloadReceipt("smollm2@abcd1234", "e" * 64, 540_000_000, 270_000_000, 1.0, False)
    host.script.then("download_checkpoint", wait, wait)
    host.script.then("bring_up", wait_too, wait_too)
    first = await here.start(here.plan(tier="remote", instance=f"one-{here.run_id}"))
    await eventually(lambda: len(host.script.requests("download_checkpoint")) == 1)
    second = await here.start(here.plan(tier="remote", instance=f"two-{here.run_id}", epoch=8))
    # The second finds the first's workflow under way and waits at the store, which joins them.
    await eventually(lambda: len(host.script.requests("download_checkpoint")) == 2)
    may_end.set()
    for handle in (first, second):
        await handle.result()
    assert len(host.script.requests("bring_up")) == 2


async def test_identical_starts_are_one(here: World) -> None:
    plan = here.plan()
    handles = await asyncio.gather(*(here.start(plan) for _ in range(5)))
    assert len({handle.result_run_id for handle in handles}) == 1
    results = await asyncio.gather(*(handle.result() for handle in handles))
    assert len(set(map(repr, results))) == 1
    assert len(here.host().script.requests("bring_up")) == 1


async def test_a_passing_failure_is_tried_again_on_the_same_host(here: World) -> None:
    here.host().script.then("bring_up", EngineGone("store restarts"), EngineGone("store restarts"))
    result = await (await here.start(here.plan())).result()
    assert (result.host_id, result.plans_tried) == (here.host_id("a"), 1)
    assert len(here.host().script.requests("bring_up")) == 3


async def test_a_host_that_cannot_is_cleaned_up_and_another_one_takes_over(here: World) -> None:
    plan = here.plan()
    other = replace(here.plan("b"), epoch=8)
    here.host().script.then("bring_up", AttachFailed("bytes refused"))
    here.control.script.then("replan_start", ReplanReceipt(plan=other))
    result = await (await here.start(plan)).result()

    assert (result.host_id, result.plans_tried) == (here.host_id("b"), 2)
    [stop] = here.host("a").script.requests("stop_instance")
    assert stop.epoch == plan.epoch
    [replan] = here.control.script.requests("replan_start")
    assert (replan.failed_hosts, replan.silent_hosts) == ([here.host_id("a")], [])
    assert "bytes refused" in replan.failure
    assert [request.plan.epoch for request in here.control.script.requests("record_start")] == [8]


async def test_a_dead_host_is_noticed_by_its_silent_queue(here: World) -> None:
    here.control.script.then("replan_start", ReplanReceipt(plan=replace(here.plan("b"), epoch=8)))
    began_s = time.monotonic()
    result = await (await here.start(here.plan("z"))).result()
    assert (result.host_id, result.plans_tried) == (here.host_id("b"), 2)
    assert time.monotonic() - began_s < 12
    [replan] = here.control.script.requests("replan_start")
    # Silent, not unable: it may be asked again when nobody else can.
    assert replan.failed_hosts == replan.silent_hosts == [here.host_id("z")]


async def test_no_more_plans_than_allowed(here: World) -> None:
    for letter in "ab":
        here.host(letter).script.then("bring_up", AttachFailed("no"))
    here.control.script.then(
        "replan_start",
        ReplanReceipt(plan=replace(here.plan("b"), epoch=8)),
        ReplanReceipt(plan=replace(here.plan("a"), epoch=9)),
    )
    handle = await here.start(here.plan(), max_plans=2)
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()

    assert isinstance(error_of(failure.value.cause), StartFailed)
    assert len(here.control.script.requests("replan_start")) == 1
    [abandoned] = here.control.script.requests("abandon_start")
    assert (abandoned.outcome, abandoned.failure_code, abandoned.plan.epoch) == ("failed", "attach_failed", 8)
    assert (await handle.describe()).typed_search_attributes[naming.OUTCOME] == "failed"


async def test_a_source_that_is_corrupt_is_not_carried_from_host_to_host(here: World) -> None:
    host = here.host()
    host.script.then("download_checkpoint", SourceCorrupt("truncated shard"))
    host.script.then("bring_up", for_ever)
    handle = await here.start(here.plan(tier="remote"))
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert here.control.script.requests("replan_start") == []
    [abandoned] = here.control.script.requests("abandon_start")
    assert abandoned.failure_code == "source_corrupt"
    assert host.cancelled, "the engine's start went on"


async def test_a_corrupt_copy_is_fetched_again_on_the_same_host_once(here: World) -> None:
    host = here.host()
    host.script.then("bring_up", ChecksumMismatch("chunk 3"))
    result = await (await here.start(here.plan())).result()
    assert (result.host_id, result.plans_tried) == (here.host_id("a"), 1)
    assert len(host.script.requests("download_checkpoint")) == 1

    host.script.then("bring_up", ChecksumMismatch("chunk 3"), ChecksumMismatch("chunk 3"))
    handle = await here.start(here.plan(instance=f"again-{here.run_id}"))
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert len(host.script.requests("download_checkpoint")) == 2
    assert here.control.script.requests("abandon_start")[-1].failure_code == "checksum_mismatch"


async def test_a_cancelled_start_gives_everything_back(here: World) -> None:
    host = here.host()

    host.script.then("bring_up", for_ever)
    plan = here.plan()
    handle = await here.start(plan)
    await eventually(lambda: host.script.requests("bring_up"))
    assert await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    with pytest.raises(WorkflowFailureError):
        await handle.result()

    assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
    assert host.cancelled == [plan.instance_id]
    # Stopped only after the attempt had ended: nobody may attach an engine behind the stop.
    assert [name for name, _ in host.script.calls] == ["bring_up", "stop_instance"]
    [abandoned] = here.control.script.requests("abandon_start")
    assert (abandoned.outcome, abandoned.failure_code) == ("stopped", "cancelled")
    assert await here.status(naming.instance_workflow_id(plan.instance_id)) is None


async def test_a_cancellation_that_comes_as_the_engine_gets_ready_still_undoes_it(here: World) -> None:
    host = here.host()
    asked = asyncio.Event()

    async def finish_though_cancelled(request: object) -> object:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await host.script.play("ready", request, receipt)

    receipt = BringUpReceipt("127.0.0.1:4000", PhaseSeconds(total_s=1.0))
    host.script.then("bring_up", finish_though_cancelled)
    plan = here.plan()
    handle = await here.start(plan)
    await asked.wait()
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert [request.outcome for request in here.control.script.requests("abandon_start")] == ["stopped"]
    assert len(host.script.requests("stop_instance")) == 1


async def test_a_lost_observation_does_not_fail_the_start(here: World) -> None:
    here.control.script.then("record_start", AttachFailed("never"), SourceCorrupt("permanent"))
    result = await (await here.start(here.plan())).result()
    assert result.endpoint == "127.0.0.1:4000"


async def test_there_is_nothing_to_cancel(client: Client) -> None:
    assert not await cancel_start(client, model="none", instance_id="none")


async def test_a_start_cancelled_while_it_downloads_leaves_the_download_to_others(here: World) -> None:
    host = here.host()
    may_end = asyncio.Event()

    async def wait(_: object) -> object:
        await may_end.wait()
        return DownloadReceipt("smollm2@abcd1234", "e" * 64, 540_000_000, 270_000_000, 1.0, False)

    host.script.then("download_checkpoint", wait)
    host.script.then("bring_up", for_ever)
    plan = here.plan(tier="remote")
    handle = await here.start(plan)
    await eventually(lambda: host.script.requests("download_checkpoint"))
    await eventually(lambda: host.script.requests("bring_up"))
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    with pytest.raises(WorkflowFailureError):
        await handle.result()

    assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
    assert [request.outcome for request in here.control.script.requests("abandon_start")] == ["stopped"]
    download = naming.download_id(plan.checkpoint.checkpoint_id, plan.host_id)
    assert await here.status(download) is WorkflowExecutionStatus.RUNNING
    may_end.set()
    await here.client.get_workflow_handle(download).result()


async def test_a_start_cancelled_between_its_download_and_its_engine_is_not_tried_again(here: World) -> None:
    host = here.host()
    host.script.then("bring_up", for_ever, for_ever)
    plan = here.plan(tier="remote")
    handle = await here.start(plan)
    # Not only the download's end: the start has taken it in.
    await here.entered(handle, LOADING)
    await eventually(lambda: host.script.requests("bring_up"))
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    async with asyncio.timeout(20):
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
    assert len(host.script.requests("bring_up")) == 1
    assert [request.outcome for request in here.control.script.requests("abandon_start")] == ["stopped"]


async def test_a_second_cancellation_does_not_interrupt_the_undoing(here: World) -> None:
    host = here.host()
    undoing, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(_: object) -> object:
        undoing.set()
        await may_end.wait()
        return Nothing()

    host.script.then("bring_up", for_ever)
    here.control.script.then("abandon_start", slowly)
    plan = here.plan()
    handle = await here.start(plan)
    await eventually(lambda: host.script.requests("bring_up"))
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    await asyncio.wait_for(undoing.wait(), 10)
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    may_end.set()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    found = await handle.describe()
    assert found.status is WorkflowExecutionStatus.CANCELED
    assert found.typed_search_attributes[naming.OUTCOME] == "stopped"

"""Workflows that fail for real, in each phase, and are replayed to success: real Temporal and Postgres."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest_asyncio
from api_stand import Stand, stand
from fake_host import FakeHost, working_cluster
from fleets import placed
from operators_shell import firstlight
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from firstlight.contracts import naming
from firstlight.contracts.migrations import MigrationInput, MoveReceipt
from firstlight.contracts.starting import cancel_start, start_cold_start, start_migration
from firstlight.contracts.starts import AbandonInput, ColdStartInput, ColdStartResult, StartPlan
from firstlight.database.connection import Database
from firstlight.database.instances_repository import get_instance
from firstlight.database.keys_repository import list_audit
from firstlight.database.migrations_repository import list_migrations, plan_migration
from firstlight.database.starts_repository import abandon_start
from firstlight.domain.lifecycle import InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.recovery.acts import SIGNALS, terminate
from firstlight.recovery.found import find, query_of, search_latest
from firstlight.recovery.replaying import replay
from firstlight.recovery.report import How, Report, Verdict
from firstlight.recovery.showing import show
from firstlight.recovery.verifying import verify
from workflows.registry import WORKFLOWS

MODEL = "cold"


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path, temporal_address=temporal_server.address) as made:
        yield made


@pytest_asyncio.fixture
async def host(api: Stand, temporal_server: EmbeddedTemporal) -> AsyncIterator[FakeHost]:
    async with working_cluster(api, temporal_server.address, "host-a", "host-b") as fake:
        yield fake


@pytest_asyncio.fixture
async def client(temporal_server: EmbeddedTemporal) -> Client:
    return await Client.connect(temporal_server.address)


async def failed_start(
    api: Stand, host: FakeHost, client: Client, model: str = MODEL
) -> tuple[StartPlan, str]:
    """A start whose weights were torn; nobody has mended them yet."""
    await api.deploy(model)
    host.failure = "the weights are torn"
    plan = await placed(api.database, model)
    handle = await start_cold_start(client, ColdStartInput(plan))
    await ended(handle)
    return plan, handle.id


async def ended(handle: WorkflowHandle) -> None:  # type: ignore[type-arg]
    try:
        await handle.result()
    except WorkflowFailureError:
        return
    raise AssertionError("it did not fail")


async def replayed(
    client: Client, database: Database, workflow_id: str, how: How, *, dry: bool = False
) -> Report:
    return await replay(client, database, workflow_id, how=how, actor="test", is_rehearsal=dry)


async def state(database: Database, instance_id: str) -> tuple[InstanceState, int, tuple[int, ...]]:
    async with database.session() as session:
        row = await get_instance(session, instance_id)
    return row.state, row.epoch, row.gpu_indices


async def test_a_start_goes_on_where_it_gave_up_under_a_new_epoch(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan, workflow_id = await failed_start(api, host, client)
    assert await state(api.database, plan.instance_id) == (InstanceState.FAILED, plan.epoch, ())
    host.failure = None

    rehearsed = await replayed(client, api.database, workflow_id, How.FROM_FAILURE, dry=True)
    assert rehearsed.verdict is Verdict.WOULD, rehearsed
    assert rehearsed.reserves is not None and rehearsed.reserves.epoch is None
    assert await state(api.database, plan.instance_id) == (InstanceState.FAILED, plan.epoch, ())

    done = await replayed(client, api.database, workflow_id, How.FROM_FAILURE)
    assert done.verdict is Verdict.DONE, done
    assert done.reserves is not None and done.reserves.epoch is not None
    assert done.reserves.epoch > plan.epoch
    result = await client.get_workflow_handle(workflow_id, run_id=done.new_run_id).result()
    assert result["plans_tried"] == 2
    found, epoch, gpus = await state(api.database, plan.instance_id)
    assert (found, epoch, gpus) == (InstanceState.READY, done.reserves.epoch, (0,))
    assert host.started == [plan.instance_id] * 2
    again = await replayed(client, api.database, workflow_id, How.FROM_FAILURE)
    assert again.verdict is Verdict.NOTHING
    async with api.database.session() as session:
        done, asked = await list_audit(session, subject=f"workflow/{workflow_id}")
    assert (asked.actor, asked.act) == ("test", "workflow replay from-failure")
    assert (done.actor, done.act) == ("test", "workflow replayed from-failure")


async def test_a_start_begins_again_with_the_same_input(api: Stand, host: FakeHost, client: Client) -> None:
    plan, workflow_id = await failed_start(api, host, client)
    host.failure = None
    done = await replayed(client, api.database, workflow_id, How.FROM_START)
    assert done.verdict is Verdict.DONE, done
    await client.get_workflow_handle(workflow_id, run_id=done.new_run_id).result()
    found, epoch, _ = await state(api.database, plan.instance_id)
    assert found is InstanceState.READY and epoch > plan.epoch


async def test_a_start_that_fails_again_is_closed_again_and_can_be_replayed_again(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan, workflow_id = await failed_start(api, host, client)
    for how in (How.FROM_FAILURE, How.FROM_START):
        done = await replayed(client, api.database, workflow_id, how)
        assert done.verdict is Verdict.DONE, done
        await ended(client.get_workflow_handle(workflow_id, run_id=done.new_run_id))
        found, _, gpus = await state(api.database, plan.instance_id)
        assert (found, gpus) == (InstanceState.FAILED, ())
    host.failure = None
    done = await replayed(client, api.database, workflow_id, How.FROM_FAILURE)
    await client.get_workflow_handle(workflow_id, run_id=done.new_run_id).result()
    assert (await state(api.database, plan.instance_id))[0] is InstanceState.READY


async def test_no_gpu_no_replay_and_nothing_changes(api: Stand, host: FakeHost, client: Client) -> None:
    plan, workflow_id = await failed_start(api, host, client)
    await api.deploy("other", max_instances=2)
    for _ in range(2):
        await api.run(await placed(api.database, "other", may_wait=False))
    for how in (How.FROM_FAILURE, How.FROM_START):
        refused = await replayed(client, api.database, workflow_id, how)
        assert (refused.verdict, refused.code) == (Verdict.REFUSED, "no_capacity"), refused
    assert await state(api.database, plan.instance_id) == (InstanceState.FAILED, plan.epoch, ())
    async with api.database.session() as session:
        lines = await list_audit(session, subject=f"workflow/{workflow_id}")
    assert [("failed" in line.detail, line.act) for line in reversed(lines)] == [
        (is_outcome, f"workflow replay {how}")
        for how in (How.FROM_FAILURE, How.FROM_START)
        for is_outcome in (False, True)
    ]
    assert (await find(client, workflow_id)).status == "failed"


async def test_a_download_that_failed_is_resumed_by_itself_and_with_its_start(
    api: Stand, host: FakeHost, client: Client
) -> None:
    host.download_failure = "a shard is truncated"
    host.gate.clear()
    await api.deploy(MODEL)
    plan = await placed(api.database, MODEL)
    handle = await start_cold_start(client, ColdStartInput(plan))
    await ended(handle)
    download = naming.download_id(plan.checkpoint.checkpoint_id, plan.host_id)
    assert (await find(client, download)).status == "failed"
    told = await show(client, api.database, download)
    assert [link.code for link in told.failure] == ["", "source_corrupt", "SourceCorrupt"]

    host.download_failure = None
    host.gate.set()
    done = await replayed(client, api.database, download, How.FROM_FAILURE)
    assert done.verdict is Verdict.DONE, done
    await client.get_workflow_handle(download, run_id=done.new_run_id).result()
    done = await replayed(client, api.database, handle.id, How.FROM_FAILURE)
    await client.get_workflow_handle(handle.id, run_id=done.new_run_id).result()
    assert (await state(api.database, plan.instance_id))[0] is InstanceState.READY


async def started(api: Stand, client: Client) -> StartPlan:
    await api.deploy(MODEL, max_instances=2)
    plan = await placed(api.database, MODEL)
    handle = await start_cold_start(client, ColdStartInput(plan))
    await handle.result()
    return plan


async def migrated(api: Stand, client: Client, plan: StartPlan) -> MigrationInput:
    request = await plan_migration(
        api.database,
        instance_id=plan.instance_id,
        to_host=None,
        reason="an operator asked",
        transfer="exact",
        now_unix_s=time.time(),
    )
    await ended(await start_migration(client, request))
    return request


async def migration_state(database: Database, migration_id: str) -> tuple[str, int]:
    async with database.session() as session:
        [row] = [row for row in await list_migrations(session) if row.migration_id == migration_id]
    return row.state, row.requests_moved


async def test_a_migration_whose_destination_failed_is_resumed(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan = await started(api, client)
    host.failure = "the weights are torn"
    request = await migrated(api, client, plan)
    host.failure = None
    await until_state(api.database, plan.instance_id, InstanceState.READY)

    done = await replayed(client, api.database, request.migration_id, How.FROM_FAILURE)
    assert done.verdict is Verdict.DONE and done.reserves is not None, done
    assert done.reserves.host_id == request.destination_host_id
    result = await client.get_workflow_handle(request.migration_id, run_id=done.new_run_id).result()
    assert result["destination_instance_id"] == done.reserves.instance_id
    assert (await migration_state(api.database, request.migration_id))[0] == "completed"
    assert (await state(api.database, done.reserves.instance_id))[0] is InstanceState.READY


async def test_a_migration_whose_requests_stayed_is_resumed_to_where_others_went(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan = await started(api, client)
    host.moves.append(MoveReceipt(handed_over=1, failed=1, error="the link broke"))
    request = await migrated(api, client, plan)
    host.moves.append(MoveReceipt(handed_over=1))
    done = await replayed(client, api.database, request.migration_id, How.FROM_FAILURE)
    # Where one request went, the other follows: nothing is reserved.
    assert done.verdict is Verdict.DONE and done.reserves is None, done
    await client.get_workflow_handle(request.migration_id, run_id=done.new_run_id).result()
    assert await migration_state(api.database, request.migration_id) == ("completed", 1)


async def test_a_migration_begins_again_as_a_new_one_while_its_source_serves(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan = await started(api, client)
    host.moves.append(MoveReceipt(failed=1, error="the link broke"))
    request = await migrated(api, client, plan)
    await until_free(api.database, request.destination_instance_id)
    done = await replayed(client, api.database, request.migration_id, How.FROM_START)
    assert done.verdict is Verdict.DONE, done
    assert done.new_workflow_id == naming.migration_workflow_id(plan.instance_id, 2)
    await client.get_workflow_handle(done.new_workflow_id).result()
    # The source has gone to where it was to go: the first one has nothing to move any more.
    await until_free(api.database, plan.instance_id)
    refused = await replayed(client, api.database, request.migration_id, How.FROM_FAILURE)
    assert (refused.verdict, refused.code) == (Verdict.REFUSED, "conflict"), refused


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    deadline_s = time.monotonic() + 20
    while not await is_so():
        assert time.monotonic() < deadline_s, "not so within 20 s"
        await asyncio.sleep(0.05)


async def until_state(database: Database, instance_id: str, wanted: InstanceState) -> None:
    async def is_so() -> bool:
        return (await state(database, instance_id))[0] is wanted

    await until(is_so)


async def until_free(database: Database, instance_id: str) -> None:
    """Until it holds no GPU."""

    async def is_so() -> bool:
        return (await state(database, instance_id))[2] == ()

    await until(is_so)


async def cut_off_start(api: Stand, host: FakeHost, client: Client) -> tuple[StartPlan, str]:
    """A start that somebody terminated while its bytes came; it still holds its GPU.

    They come no further before the test opens the gate: an activity whose workflow was terminated hears of
    it a heartbeat later, and would have brought the instance up by then.
    """
    await api.deploy(MODEL)
    host.gate.clear()
    plan = await placed(api.database, MODEL)
    handle = await start_cold_start(client, ColdStartInput(plan))

    async def is_brought_up() -> bool:
        return bool(host.started)

    await until(is_brought_up)
    report = await terminate(client, api.database, handle.id, reason="3 am", actor="test")
    assert report.verdict is Verdict.DONE and "reserved" in report.sentence
    return plan, handle.id


async def test_a_start_that_was_cut_off_goes_on_with_the_gpus_it_still_holds(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan, workflow_id = await cut_off_start(api, host, client)
    told = await show(client, api.database, workflow_id)
    assert any(step.name == "bring_up" and step.outcome == "open" for step in told.steps)
    assert any(one.holds and "holds GPU 0" in one.what for one in told.left_behind)
    assert "3 am" in str(told.failure[0])
    done = await replayed(client, api.database, workflow_id, How.FROM_FAILURE)
    assert done.verdict is Verdict.DONE and done.reserves is None, done
    host.gate.set()
    await client.get_workflow_handle(workflow_id, run_id=done.new_run_id).result()
    assert await state(api.database, plan.instance_id) == (InstanceState.READY, plan.epoch, (0,))


async def test_an_epoch_that_is_over_is_refused_and_the_start_begins_again(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan, workflow_id = await cut_off_start(api, host, client)
    async with api.database.transaction() as session:
        await abandon_start(session, AbandonInput(plan, "start_timeout", "nobody carries it out"))
    refused = await replayed(client, api.database, workflow_id, How.FROM_FAILURE)
    assert (refused.verdict, refused.code) == (Verdict.REFUSED, "stale_epoch"), refused
    done = await replayed(client, api.database, workflow_id, How.FROM_START)
    host.gate.set()
    await client.get_workflow_handle(workflow_id, run_id=done.new_run_id).result()
    found, epoch, _ = await state(api.database, plan.instance_id)
    assert found is InstanceState.READY and epoch > plan.epoch


async def test_who_was_asked_to_stop_stays_stopped(api: Stand, host: FakeHost, client: Client) -> None:
    await api.deploy(MODEL)
    host.gate.clear()
    plan = await placed(api.database, MODEL)
    handle = await start_cold_start(client, ColdStartInput(plan))
    await cancel_start(client, model=MODEL, instance_id=plan.instance_id)
    await ended(handle)
    for how in (How.FROM_FAILURE, How.FROM_START):
        refused = await replayed(client, api.database, handle.id, how)
        assert (refused.verdict, refused.code) == (Verdict.REFUSED, "conflict"), refused


async def test_an_instance_nobody_looks_after_is_looked_after_again_under_its_own_epoch_only(
    api: Stand, host: FakeHost, client: Client
) -> None:
    plan = await started(api, client)
    workflow_id = naming.instance_workflow_id(plan.instance_id)
    await terminate(client, api.database, workflow_id, reason="by mistake", actor="test")
    done = await replayed(client, api.database, workflow_id, How.FROM_FAILURE)
    assert done.verdict is Verdict.DONE, done
    assert (await find(client, workflow_id)).is_running
    assert (await state(api.database, plan.instance_id))[0] is InstanceState.READY

    await terminate(client, api.database, workflow_id, reason="again", actor="test")
    done = await replayed(client, api.database, workflow_id, How.FROM_START)
    assert done.verdict is Verdict.DONE and (await find(client, workflow_id)).is_running, done
    again = await replayed(client, api.database, workflow_id, How.FROM_START)
    assert again.verdict is Verdict.NOTHING
    await terminate(client, api.database, workflow_id, reason="for good", actor="test")
    async with api.database.transaction() as session:
        await abandon_start(session, AbandonInput(plan, "engine_gone", "it ended"))
    refused = await replayed(client, api.database, workflow_id, How.FROM_START)
    assert (refused.verdict, refused.code) == (Verdict.REFUSED, "stale_epoch"), refused


# Not in the sandbox, which would import this module with all its servers again.
@workflow.defn(name=naming.COLD_START, sandboxed=False)
class Otherwise:
    """A ColdStart that does nothing: what a careless edit amounts to."""

    @workflow.run
    async def run(self, request: ColdStartInput) -> ColdStartResult:
        raise NotImplementedError


async def test_verifying_tells_other_code_from_the_same_and_changes_nothing(
    api: Stand, host: FakeHost, client: Client
) -> None:
    _, workflow_id = await failed_start(api, host, client)
    before = await find(client, workflow_id)
    assert (await replayed(client, api.database, workflow_id, How.VERIFY)).verdict is Verdict.SAME
    differs = await verify(client, before, workflows=[Otherwise])
    assert differs.verdict is Verdict.DIFFERS and differs.is_bad
    assert await find(client, workflow_id) == before


def test_signals_are_those_the_workflows_hear() -> None:
    heard = {}
    for kind in WORKFLOWS:
        definition = workflow._Definition.must_from_class(kind)
        if definition.signals:
            heard[definition.name] = {name for name in definition.signals if name}
    assert {name: set(known) for name, known in SIGNALS.items()} == heard


async def test_an_operator_at_night(
    api: Stand, host: FakeHost, client: Client, temporal_server: EmbeddedTemporal, database_url: str
) -> None:
    """Two starts fail; they are found, looked at, and replayed together once somebody agrees."""
    # Names of this test alone: the server remembers what other tests ended.
    plan, workflow_id = await failed_start(api, host, client, "night-one")
    second, second_id = await failed_start(api, host, client, "night-two")
    both_of_them = 'FirstlightModel IN ("night-one", "night-two")'

    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            firstlight,
            "workflows",
            *arguments,
            temporal=temporal_server.address,
            database_url=database_url,
        )

    async def failed() -> set[str]:
        found = await search_latest(client, query_of(more=both_of_them), limit=10)
        return {row.workflow_id for row in found.rows}

    await until_async(failed, {workflow_id, second_id})
    listed = await run("list", "--failed", "--query", both_of_them, "--since", "1h", "--json")
    assert {row["workflow_id"] for row in json.loads(listed.stdout)} == {workflow_id, second_id}
    shown = await run("show", workflow_id)
    assert "the weights are torn" in shown.stdout and "holds no GPU" in shown.stdout, shown.stderr
    host.failure = None
    unsure = await run("replay", "--all", "--from-failure", "--query", both_of_them)
    assert unsure.returncode == 2 and "--yes" in unsure.stderr
    both = await run("replay", workflow_id, "--from-failure", "--from-start")
    assert both.returncode == 2
    rehearsed = await run("replay", "--all", "--from-failure", "--model", "night-one", "--dry-run")
    assert "would reserve GPU 0" in rehearsed.stdout, rehearsed.stderr
    done = await run("replay", "--all", "--from-failure", "--query", both_of_them, "--yes", "--json")
    assert done.returncode == 0, done.stdout
    assert {row["verdict"] for row in json.loads(done.stdout)} == {"done"}
    for one in (plan, second):
        await until_state(api.database, one.instance_id, InstanceState.READY)
    await until_async(failed, set())


async def until_async(look: Callable[[], Awaitable[set[str]]], wanted: set[str]) -> None:
    """Visibility lags a little behind."""

    async def is_so() -> bool:
        return await look() == wanted

    await until(is_so)

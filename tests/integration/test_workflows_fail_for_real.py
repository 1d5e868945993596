"""Starts that get no room, drains, hosts' lives and reconciliations: failed or cut off, replayed to success.

An operator does it by the command line alone; Temporal, Postgres and the control worker are real.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from api_stand import Stand, stand
from fake_host import FakeHost, working_cluster
from fleets import DIGEST, add_host, placed
from operators_shell import Operator
from sqlalchemy import func, text, update
from temporalio.client import Client, WorkflowFailureError
from temporalio.worker import Worker

from firstlight.contracts import naming
from firstlight.contracts.hosts import ReconcileInput
from firstlight.contracts.instances import StopSignal
from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import MoveReceipt
from firstlight.contracts.starting import announce_host, start_cold_start, stop_instance
from firstlight.contracts.starts import ColdStartInput, StartPlan
from firstlight.database import hosts_repository
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.instances_repository import get_instance
from firstlight.database.tables import HostRow
from firstlight.domain.lifecycle import HostState, InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.launcher.temporal_client import ensure_reconciler
from firstlight.recovery.acts import terminate
from firstlight.recovery.found import find, query_of, search
from firstlight.recovery.recorded import Recorded
from firstlight.rpc.channels import Channels
from firstlight.rpc.engine_loads import EngineLoads


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


@pytest.fixture
def operator(temporal_server: EmbeddedTemporal, database_url: str) -> Operator:
    return Operator(temporal_server.address, database_url)


async def until(is_so: Callable[[], Awaitable[object]], *, within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not await is_so():
        assert time.monotonic() < deadline_s, f"not so within {within_s} s"
        await asyncio.sleep(0.05)


async def state(database: Database, plan: StartPlan) -> tuple[InstanceState, tuple[int, ...]]:
    async with database.session() as session:
        row = await get_instance(session, plan.instance_id)
    return row.state, row.gpu_indices


async def until_state(database: Database, plan: StartPlan, *wanted: InstanceState) -> None:
    async def is_so() -> bool:
        return (await state(database, plan))[0] in wanted

    await until(is_so)


async def host_state(database: Database, host_id: str) -> HostState:
    async with database.session() as session:
        [row] = [row for row in await hosts_repository.list_hosts(session) if row.host_id == host_id]
    return row.state


async def serving(api: Stand, client: Client, model: str, **changes: object) -> StartPlan:
    """An instance that is looked after by its workflow."""
    await api.deploy(model, keep_alive_s=600.0, **changes)
    plan = await placed(api.database, model)
    await (await start_cold_start(client, ColdStartInput(plan))).result()
    return plan


async def fails(client: Client, plan: StartPlan, *, max_plans: int = 3) -> str:
    """Its workflow's id."""
    handle = await start_cold_start(client, ColdStartInput(plan, max_plans=max_plans))
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    return handle.id


async def says_it_runs(api: Stand, plan: StartPlan, *, requests: int) -> None:
    """As its engine says itself, and its host's agent writes."""
    idle_s = None if requests else 30.0
    engine = api.engines[plan.instance_id]
    engine.running, engine.idle_s = requests, idle_s or 0.0
    load = EngineLoad(instance_id=plan.instance_id, requests=requests, tokens=50 * requests, idle_s=idle_s)
    async with api.database.transaction() as session:
        await write_loads(session, [load])


async def wanting_room(api: Stand, model: str) -> StartPlan:
    """A plan that somebody is to give way to."""
    async with Channels() as channels:
        plan = await placed(api.database, model, may_wait=False, ask_engines=EngineLoads(channels).ask)
    assert plan.victims
    return plan


@asynccontextmanager
async def without_table(database: Database, name: str) -> AsyncIterator[None]:
    """What half an upgrade, or half a restore, leaves behind."""
    async with database.transaction() as session:
        await session.execute(text(f"ALTER TABLE {name} RENAME TO away"))
    try:
        yield
    finally:
        async with database.transaction() as session:
            await session.execute(text(f"ALTER TABLE away RENAME TO {name}"))


async def test_a_start_that_others_did_not_give_way_to_starts_when_there_is_room(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    """Its victim had something to do again, and nobody else could give way."""
    await serving(api, client, "elsewhere", priority=3)
    old = await serving(api, client, "idle-once")
    await says_it_runs(api, old, requests=0)
    await api.deploy("roomless")
    plan = await wanting_room(api, "roomless")
    assert [victim.instance_id for victim in plan.victims] == [old.instance_id]
    await says_it_runs(api, old, requests=1)
    workflow_id = await fails(client, plan)

    await operator.finds_soon(workflow_id, by=("--model", "roomless", "--type", "ColdStart"))
    shown = await operator.runs("show", workflow_id)
    assert "evict_instance" in shown.stdout and "has something to do again" in shown.stdout, shown.stderr
    refused = await operator.is_told("replay", workflow_id, "--from-failure", code=1)
    assert refused["code"] == "no_capacity"
    assert await state(api.database, plan) == (InstanceState.FAILED, ())
    assert (await state(api.database, old))[0] is InstanceState.READY

    await says_it_runs(api, old, requests=0)
    instance = naming.instance_workflow_id(old.instance_id)
    stopped = await operator.runs("signal", instance, "stop", "--data", '{"reason": "it must go"}')
    assert stopped.returncode == 0, stopped.stderr
    await until_state(api.database, old, InstanceState.STOPPED)
    done = await operator.is_told("replay", workflow_id, "--from-failure")
    assert done["verdict"] == "done" and done["reserves"]["host_id"] == old.host_id
    await client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
    assert await state(api.database, plan) == (InstanceState.READY, (0,))
    await operator.finds_soon(by=("--model", "roomless"))


async def test_a_migration_that_was_to_make_room_is_replayed_and_then_its_start(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    large = {"size_bytes": 1_000_000_000, "source_bytes": 500_000_000}
    old = await serving(api, client, "busy-one", **large)
    other_id = next(name for name in ("host-a", "host-b") if name != old.host_id)
    await api.deploy("mover", **large)
    for host_id, model in ((old.host_id, "mover"), (other_id, "busy-one")):
        async with api.database.transaction() as session:
            await hosts_repository.set_placements(
                session,
                host_id=host_id,
                checkpoint_id=f"{model}@abcd1234",
                ssd=True,
                dram=None,
                size_bytes=1_100_000_000,
                manifest_digest=DIGEST,
            )
    await says_it_runs(api, old, requests=2)
    plan = await wanting_room(api, "mover")
    [victim] = plan.victims
    assert victim.migration_id
    host.moves.append(MoveReceipt(failed=2, error="the link broke"))
    workflow_id = await fails(client, plan, max_plans=1)

    await operator.finds_soon(victim.migration_id, by=("--type", "LiveMigration", "--model", "busy-one"))
    shown = await operator.runs("show", workflow_id)
    assert victim.migration_id in shown.stdout and "the link broke" in shown.stdout, shown.stderr
    assert (await state(api.database, old))[0] is InstanceState.READY
    moved = await operator.is_told("replay", victim.migration_id, "--from-failure")
    await client.get_workflow_handle(victim.migration_id, run_id=moved["new_run_id"]).result()
    await until_state(api.database, old, InstanceState.STOPPED)
    done = await operator.is_told("replay", workflow_id, "--from-failure")
    assert done["reserves"]["host_id"] == plan.host_id
    await client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
    assert (await state(api.database, plan))[0] is InstanceState.READY


async def drained(api: Stand, host_id: str) -> str:
    """Asks for it; the workflow's id."""
    answer = await api.http.post(f"/admin/v1/hosts/{host_id}/drain")
    assert answer.status_code == 202, answer.text
    return naming.drain_workflow_id(host_id)


async def test_a_drain_does_not_fail_but_tries_on_and_says_why(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    plan = await serving(api, client, "moves-off")

    async def tries_again() -> bool:
        described = await client.get_workflow_handle(workflow_id).describe()
        return any(one.attempt > 2 for one in described.raw_description.pending_activities)

    async with without_table(api.database, "migrations"):
        workflow_id = await drained(api, plan.host_id)
        await until(tries_again)
        told = (await operator.runs("show", workflow_id)).stdout
    assert "move_off" in told and 'relation "migrations" does not exist' in told
    assert f"instance {plan.instance_id} is ready" in told
    await client.get_workflow_handle(workflow_id).result()
    assert (await state(api.database, plan))[1] == ()
    assert workflow_id not in await operator.finds("--type", "HostDrain", "--since", "5m")


async def test_a_drain_that_was_cut_off_is_taken_up_again_while_it_is_meant(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    plan = await serving(api, client, "stays")
    other = await serving(api, client, "in-its-way")
    assert other.host_id != plan.host_id
    workflow_id = await drained(api, plan.host_id)
    await until(lambda: has_done(client, workflow_id, "move_off"))
    ended = await operator.runs("terminate", workflow_id, "--reason", "3 am")
    assert "keeps what it runs" in ended.stdout, ended.stderr
    drains_here = ("--type", "HostDrain", "--host", plan.host_id, "--since", "1m")
    await operator.finds_soon(workflow_id, by=drains_here)
    shown = await operator.runs("show", workflow_id)
    assert f"{plan.host_id} is draining" in shown.stdout and "3 am" in shown.stdout
    assert f"instance {plan.instance_id} is ready" in shown.stdout

    # There is no room for what it has to move: it goes on as it was, until it is cut off once more.
    await operator.is_told("replay", workflow_id, "--from-failure")
    await until(lambda: has_done(client, workflow_id, "move_off", times=2))
    await terminate(client, api.database, workflow_id, reason="4 am", actor="test")
    await stop_instance(client, model="in-its-way", instance_id=other.instance_id, request=StopSignal("room"))
    await until_state(api.database, other, InstanceState.STOPPED)
    rehearsed = await operator.is_told("replay", workflow_id, "--from-start", "--dry-run")
    assert rehearsed["verdict"] == "would" and not (await find(client, workflow_id)).is_running
    done = await operator.is_told("replay", workflow_id, "--from-start")
    await client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
    assert (await state(api.database, plan))[1] == ()
    await operator.finds_soon(by=drains_here)


async def has_done(client: Client, workflow_id: str, name: str, *, times: int = 1) -> bool:
    recorded = await Recorded.read(client, workflow_id, (await find(client, workflow_id)).run_id)
    return [(step.name, step.outcome) for step in recorded.steps].count((name, "completed")) >= times


async def test_a_drain_that_nobody_wants_any_more_is_refused(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    await serving(api, client, "here")
    await serving(api, client, "there")
    workflow_id = await drained(api, "host-a")
    await terminate(client, api.database, workflow_id, reason="by mistake", actor="test")
    answer = await api.http.post("/admin/v1/hosts/host-a/undrain")
    assert answer.status_code == 200, answer.text
    refused = await operator.is_told("replay", workflow_id, "--from-failure", code=1)
    assert refused["code"] == "conflict" and "nobody wants it drained" in refused["sentence"]


async def test_a_hosts_life_that_was_cut_off_is_watched_again(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    """Its workflow waits for ever by design: what can happen to it is that somebody ends it."""
    host_id = "host-a"
    workflow_id = naming.host_workflow_id(host_id)

    async def watches() -> bool:
        described = await client.get_workflow_handle(workflow_id).describe()
        pending = described.raw_description.pending_activities
        return any(one.activity_type.name == "watch_lease" for one in pending)

    async def is_lost() -> bool:
        return await host_state(api.database, host_id) is HostState.LOST

    await announce_host(client, host_id=host_id, registration=1)
    await until(watches)
    ended = await operator.runs("terminate", workflow_id)
    assert "nobody notices the host's loss" in ended.stdout, ended.stderr
    async with api.database.transaction() as session:
        died = update(HostRow).where(HostRow.host_id == host_id)
        await session.execute(died.values(lease_expires_at=func.clock_timestamp()))
    lives_here = ("--type", "HostLifecycle", "--host", host_id)
    await operator.finds_soon(workflow_id, by=lives_here)
    assert not await is_lost()
    done = await operator.is_told("replay", workflow_id, "--from-failure")
    assert "watch_lease" in done["sentence"]
    await until(is_lost)

    # Cut off once more while it waits for the host's return.
    await terminate(client, api.database, workflow_id, reason="again", actor="test")
    again = await operator.is_told("replay", workflow_id, "--from-failure")
    registration = await add_host(api.database, host_id)
    await announce_host(client, host_id=host_id, registration=registration)
    await until(watches)
    assert (await find(client, workflow_id)).run_id == again["new_run_id"]

    # Its input speaks of the first registration: only what it has learned since may go on.
    await terminate(client, api.database, workflow_id, reason="again", actor="test")
    refused = await operator.is_told("replay", workflow_id, "--from-start", code=1)
    assert refused["code"] == "stale_epoch"
    await operator.is_told("replay", workflow_id, "--from-failure")
    await until(watches)
    await operator.finds_soon(by=lives_here)


async def test_a_reconciliation_that_failed_is_done_after_all(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    known = await failed_reconciliations(client)
    async with without_table(api.database, "hosts"):
        await ensure_reconciler(client, every_s=3600.0)
        try:
            await until(lambda: has_more(client, known))
        finally:
            await client.get_schedule_handle(naming.RECONCILER_SCHEDULE_ID).delete()
        # The newest is the one that its schedule has just begun.
        workflow_id = (await operator.finds("--type", "FleetReconciler", "--since", "1m"))[0]
        assert workflow_id not in known
        shown = await operator.runs("show", workflow_id)
        assert "list_hosts" in shown.stdout and 'relation "hosts" does not exist' in shown.stdout
        # Its cause is not mended: it fails once more, and can be replayed once more.
        early = await operator.is_told("replay", workflow_id, "--from-failure")
        with pytest.raises(WorkflowFailureError):
            await client.get_workflow_handle(workflow_id, run_id=early["new_run_id"]).result()
    done = await operator.is_told("replay", workflow_id, "--from-failure")
    assert "list_hosts" in done["sentence"]
    result = await client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
    assert (result["hosts"], result["unreachable"]) == (2, [])
    assert (await operator.is_told("replay", workflow_id, "--from-start"))["verdict"] == "nothing"
    await operator.finds_soon(by=("--type", "FleetReconciler", "--query", f'WorkflowId = "{workflow_id}"'))


async def failed_reconciliations(client: Client) -> set[str]:
    found = await search(client, query_of(workflow_type=naming.FLEET_RECONCILER), limit=1000)
    return {row.workflow_id for row in found.rows}


async def has_more(client: Client, known: set[str]) -> bool:
    return bool(await failed_reconciliations(client) - known)


@pytest.mark.parametrize("how", ["--from-failure", "--from-start"])
async def test_a_reconciliation_whose_time_ran_out_is_done_after_all_in_as_much_time(
    api: Stand, host: FakeHost, client: Client, operator: Operator, how: str
) -> None:
    """A host that hangs holds it up; once that is back, it gets the whole time again."""
    await api.add_host("host-z")
    workflow_id = f"{naming.RECONCILER_WORKFLOW_ID}-of-{time.time_ns()}"
    handle = await client.start_workflow(
        naming.FLEET_RECONCILER,
        ReconcileInput(),
        id=workflow_id,
        task_queue=naming.CONTROL_QUEUE,
        execution_timeout=timedelta(seconds=4),
    )
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    shown = await operator.runs("show", workflow_id)
    assert "its time ran out" in shown.stdout and "report_inventory" in shown.stdout, shown.stderr
    async with Worker(client, task_queue=naming.host_queue("host-z"), activities=[host.report_inventory]):
        done = await operator.is_told("replay", workflow_id, how)
        result = await client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
    assert (result["hosts"], result["unreachable"]) == (3, [])
    described = await client.get_workflow_handle(workflow_id).describe()
    allowed = described.raw_description.execution_config.workflow_execution_timeout
    assert allowed.ToTimedelta() == timedelta(seconds=4)

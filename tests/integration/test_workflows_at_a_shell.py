"""`firstlight workflows` as it is typed: what `list` narrows down by, `--verify`, `--run`, and the question
before many are touched. Real Temporal and Postgres; the command line is a process of its own.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from api_stand import NOWHERE, Stand, stand
from fake_host import FakeHost, working_cluster
from fleets import placed
from operators_shell import Operator, environment
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker
from terminals import Terminal

from firstlight.contracts import naming
from firstlight.contracts.starting import cancel_start, start_cold_start
from firstlight.contracts.starts import ColdStartInput, ColdStartResult, PhaseSeconds
from firstlight.database.connection import Database
from firstlight.database.keys_repository import list_audit
from firstlight.domain.names import HostId
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.recovery.found import FoundWorkflow, find, query_of, search


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


async def until(is_so: Callable[[], Awaitable[object]], *, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not await is_so():
        assert time.monotonic() < deadline_s, f"not so within {within_s} s"
        await asyncio.sleep(0.05)


async def begun(api: Stand, client: Client, model: str, *, not_on: str = "") -> WorkflowHandle:  # type: ignore[type-arg]
    await api.deploy(model)
    plan = await placed(api.database, model, excluded_hosts=frozenset({HostId(not_on)}))
    return await start_cold_start(client, ColdStartInput(plan))


async def failed(api: Stand, host: FakeHost, client: Client, model: str, *, not_on: str = "") -> str:
    """The id of a start whose weights were torn; they are mended by now."""
    host.failure = "the weights are torn"
    handle = await begun(api, client, model, not_on=not_on)
    await ended(handle)
    host.failure = None
    return handle.id


async def ended(handle: WorkflowHandle) -> None:  # type: ignore[type-arg]
    with pytest.raises(WorkflowFailureError):
        await handle.result()


async def test_failures_are_narrowed_down(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    start = await failed(api, host, client, "narrow-one", not_on="host-b")
    host.download_failure = "a shard is truncated"
    host.gate.clear()
    handle = await begun(api, client, "narrow-two", not_on="host-a")
    await ended(handle)
    host.download_failure = None
    download = naming.download_id("narrow-two@abcd1234", "host-b")
    cancelled = await begun(api, client, "narrow-three")
    await cancel_start(client, model="narrow-three", instance_id=cancelled.id.rpartition("/")[2])
    await ended(cancelled)

    of_it = ("--query", 'FirstlightModel IN ("narrow-one", "narrow-two", "narrow-three")')
    # Who was cancelled did not fail.
    await operator.finds_soon(start, handle.id, download, by=of_it)
    assert await operator.finds("--model", "narrow-one") == [start]
    assert set(await operator.finds("--host", "host-b", *of_it)) == {handle.id, download}
    assert await operator.finds("--host", "host-a", *of_it) == [start]
    assert await operator.finds("--type", "ModelDownload", *of_it) == [download]
    assert await operator.finds("--type", "ColdStart", "--host", "host-b", *of_it) == [handle.id]
    assert len(await operator.finds("--since", "1h", *of_it)) == 3
    # All of it is longer ago by now.
    assert await operator.finds("--since", "0.1s", *of_it) == []

    listed = await operator.runs("list", "--failed", "--model", "narrow-two", "--type", "ModelDownload")
    assert all(word in listed.stdout for word in ("failed", "ago", "ModelDownload", "host-b", download))
    everything = await operator.is_told("list", "--model", "narrow-three", "--type", "ColdStart")
    assert [row["status"] for row in everything] == ["canceled"]
    # How far the bytes had come when the source was found out.
    shown = await operator.runs("show", download)
    assert "a shard is truncated" in shown.stdout, shown.stderr
    assert 'Last heartbeat  {"bytes_done": 300000000, "bytes_total": 500000000' in shown.stdout


async def test_what_cannot_be_asked_for_is_said(operator: Operator) -> None:
    for option, code, told in (
        (("--since", "soon"), 2, "write 90s, 30m, 2h or 1d"),
        (("--model", 'x"y'), 1, "cannot stand in a query"),
        (("--query", "NoSuchAttribute = 3"), 1, "refuses the query"),
    ):
        done = await operator.runs("list", "--failed", *option)
        # A usage error comes in a frame that breaks lines.
        assert done.returncode == code and told in " ".join(done.stderr.replace("│", " ").split()), (
            done.stderr
        )


async def test_an_age_counts_from_the_end(api: Stand, host: FakeHost, client: Client) -> None:
    """One that began yesterday may have failed a minute ago."""
    host.gate.clear()
    host.failure = "the weights are torn"
    handle = await begun(api, client, "long-one")
    between_s = time.time()
    assert (await find(client, handle.id)).started_at_unix_s < between_s
    host.gate.set()
    await ended(handle)
    closed = (await find(client, handle.id)).closed_at_unix_s
    assert closed is not None

    async def found(since_s: float) -> list[FoundWorkflow]:
        query = query_of(since_unix_s=since_s, model="long-one")
        return list((await search(client, query, limit=5)).rows)

    await until(lambda: found(between_s))
    assert await found(closed + 0.01) == []


# Not in the sandbox, which would import this module with all its servers again.
@workflow.defn(name=naming.COLD_START, sandboxed=False)
class Otherwise:
    """What an earlier release may have been: it brought nothing up."""

    @workflow.run
    async def run(self, request: ColdStartInput) -> ColdStartResult:
        return ColdStartResult("i-1", "host-a", "127.0.0.1:1", 1, PhaseSeconds())


async def test_verifying_says_whether_todays_code_takes_the_recorded_steps(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    workflow_id = await failed(api, host, client, "verified")
    before = await find(client, workflow_id)
    same = await operator.is_told("replay", workflow_id, "--verify")
    assert same["verdict"] == "same" and "takes the recorded steps" in same["sentence"]
    # Nothing is changed, so that nobody is asked, and no database is needed.
    nowhere = Operator(operator.temporal, f"postgresql://nobody@{NOWHERE}/x")
    assert (await nowhere.is_told("replay", workflow_id, "--verify"))["verdict"] == "same"
    assert await find(client, workflow_id) == before
    async with api.database.session() as session:
        assert await list_audit(session, subject=f"workflow/{workflow_id}") == []

    queue = f"otherwise-{uuid.uuid4().hex}"
    async with Worker(client, task_queue=queue, workflows=[Otherwise]):
        plan = await placed(api.database, "verified")
        other = await client.start_workflow(
            naming.COLD_START, ColdStartInput(plan), id=f"{queue}/1", task_queue=queue
        )
        await other.result()
    differs = await operator.runs("replay", other.id, "--verify")
    assert differs.returncode == 1 and "differs" in differs.stdout and "other steps" in differs.stdout

    both = f'WorkflowId IN ("{workflow_id}", "{other.id}")'

    async def are_visible() -> bool:
        return len((await search(client, both, limit=5)).rows) == 2

    await until(are_visible)
    told = await operator.is_told("replay", "--all", "--verify", "--query", both, code=1)
    assert {row["workflow_id"]: row["verdict"] for row in told} == {workflow_id: "same", other.id: "differs"}


async def test_an_earlier_run_can_be_looked_at_and_verified_but_not_replayed(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    workflow_id = await failed(api, host, client, "twice-run")
    first = (await find(client, workflow_id)).run_id
    done = await operator.is_told("replay", workflow_id, "--from-failure")
    await client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()

    shown = await operator.is_told("show", workflow_id, "--run", first)
    assert (shown["workflow"]["run_id"], shown["workflow"]["status"]) == (first, "failed")
    assert (await operator.is_told("show", workflow_id))["workflow"]["run_id"] == done["new_run_id"]
    for run in ([], ["--run", first], ["--run", done["new_run_id"]]):
        assert (await operator.is_told("replay", workflow_id, "--verify", *run))["verdict"] == "same"
    refused = await operator.runs("replay", workflow_id, "--from-failure", "--run", first)
    assert refused.returncode == 2 and "--verify" in refused.stderr
    unknown = await operator.runs("replay", workflow_id, "--verify", "--run", str(uuid.uuid4()))
    assert unknown.returncode == 1 and "no workflow" in unknown.stderr


async def test_many_are_touched_only_once_somebody_has_agreed(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    ids = [await failed(api, host, client, model) for model in ("ask-one", "ask-two")]
    of_them = 'FirstlightModel IN ("ask-one", "ask-two")'
    await operator.finds_soon(*ids, by=("--query", of_them))
    before = [await find(client, one) for one in ids]
    replay_all = ("replay", "--all", "--from-failure", "--query", of_them)

    def answered(keys: bytes) -> tuple[int, str]:
        """Exit code, and what a terminal showed."""
        env = environment(temporal=operator.temporal, database_url=operator.database_url)
        with closing(Terminal("workflows", *replay_all, env=env)) as terminal:
            terminal.until(lambda shown: b"these 2 workflows?" in shown)
            terminal.press(keys)
            return terminal.end(), terminal.shown.decode()

    async def untouched() -> None:
        assert [await find(client, one) for one in ids] == before
        for one in ids:
            async with api.database.session() as session:
                assert await list_audit(session, subject=f"workflow/{one}") == []

    for keys in (b"n\r", b"\r"):
        code, shown = await asyncio.to_thread(answered, keys)
        assert code == 1 and "nothing was done" in shown and all(one in shown for one in ids), shown
        await untouched()
    unattended = await operator.runs(*replay_all)
    assert unattended.returncode == 2 and "--yes" in unattended.stderr
    await untouched()
    rehearsed = await operator.is_told(*replay_all, "--dry-run")
    assert [row["verdict"] for row in rehearsed] == ["would", "would"]
    await untouched()

    code, shown = await asyncio.to_thread(answered, b"y\r")
    assert code == 0 and shown.count("reserves GPU 0") == 2, shown
    for one in ids:
        await client.get_workflow_handle(one).result()


async def test_a_database_that_is_away_hides_no_failure(
    api: Stand, host: FakeHost, client: Client, operator: Operator
) -> None:
    workflow_id = await failed(api, host, client, "shown-anyway")
    nowhere = Operator(operator.temporal, f"postgresql://nobody@{NOWHERE}/x")
    shown = await nowhere.runs("show", workflow_id)
    assert shown.returncode == 0 and "the weights are torn" in shown.stdout, shown.stderr
    assert "not looked at: rows in postgres" in shown.stdout


async def test_a_namespace_that_is_not_there_is_said_with_what_to_do(operator: Operator) -> None:
    elsewhere = Operator(operator.temporal, operator.database_url, {"temporal_namespace": "nowhere"})
    for arguments in (
        ("show", "host/host-a"),
        ("list", "--failed"),
        ("replay", "host/host-a", "--verify"),
        ("replay", "--all", "--from-start"),
        ("terminate", "host/host-a"),
    ):
        done = await elsewhere.runs(*arguments)
        assert done.returncode == 1 and "namespace 'nowhere'" in done.stderr, (arguments, done.stderr)
        assert "FIRSTLIGHT_TEMPORAL_NAMESPACE" in done.stderr and "no workflow" not in done.stderr

"""Acts on workflows by the command line, and their lines in the audit log: real Temporal and Postgres."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from api_stand import NOWHERE, Stand, stand
from fake_host import FakeHost, working_cluster
from fleets import placed
from operators_shell import firstlight
from sqlalchemy import text
from temporalio.client import Client, WorkflowFailureError

from firstlight.contracts import naming
from firstlight.contracts.starting import start_cold_start
from firstlight.contracts.starts import ColdStartInput
from firstlight.database.connection import Database
from firstlight.database.keys_repository import list_audit
from firstlight.database.records import AuditRecord
from firstlight.domain.names import InstanceId
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.recovery.found import find

# Nobody polls it.
QUEUE = "nobody"


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


async def shell(*arguments: str, **cluster: str | None) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(firstlight, "workflows", *arguments, **cluster)


async def lines_of(database: Database, workflow_id: str) -> list[AuditRecord]:
    """Oldest first."""
    async with database.session() as session:
        return (await list_audit(session, subject=f"workflow/{workflow_id}"))[::-1]


async def running(client: Client) -> str:
    """An instance's workflow that no worker takes a step of; its id."""
    workflow_id = naming.instance_workflow_id(InstanceId(f"i-{uuid.uuid4().hex}"))
    await client.start_workflow(naming.INSTANCE_LIFECYCLE, id=workflow_id, task_queue=QUEUE)
    return workflow_id


async def signals_of(client: Client, workflow_id: str) -> list[str]:
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in history.events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]


async def test_signal_cancel_and_terminate_do_it_and_have_their_lines(
    api: Stand,
    host: FakeHost,
    client: Client,
    database_url: str,
    temporal_server: EmbeddedTemporal,
) -> None:
    cluster = {"temporal": temporal_server.address, "database_url": database_url}
    await api.deploy("served")
    plan = await placed(api.database, "served")
    await (await start_cold_start(client, ColdStartInput(plan))).result()
    instance = naming.instance_workflow_id(plan.instance_id)
    run_id = (await find(client, instance)).run_id

    told = await shell("signal", instance, "keep_alive", "--data", '{"keep_alive_s": 60}', **cluster)
    assert told.returncode == 0 and "not recorded" not in told.stderr, told.stderr
    assert naming.KEEP_ALIVE in await signals_of(client, instance)
    unknown = await shell("signal", instance, "keep_on", **cluster)
    assert unknown.returncode == 1 and "keep_alive" in unknown.stderr
    rehearsed = await shell("terminate", instance, "--dry-run", **cluster)
    assert "would" in rehearsed.stdout and (await find(client, instance)).is_running
    ended = await shell("terminate", instance, "--reason", "3 am", **cluster)
    assert ended.returncode == 0 and "not recorded" not in ended.stderr, ended.stderr
    assert (await find(client, instance)).status == "terminated"
    again = await shell("terminate", instance, **cluster)
    assert "nothing was done" in again.stdout

    await api.deploy("starting")
    host.gate.clear()
    handle = await start_cold_start(client, ColdStartInput(await placed(api.database, "starting")))
    cancelled = await shell("cancel", handle.id, **cluster)
    assert cancelled.returncode == 0 and "not recorded" not in cancelled.stderr, cancelled.stderr
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert (await find(client, handle.id)).status == "canceled"

    of_instance = await lines_of(api.database, instance)
    assert [line.act for line in of_instance] == ["workflow signal keep_alive", "workflow terminate"]
    assert [line.act for line in await lines_of(api.database, handle.id)] == ["workflow cancel"]
    assert all(line.actor.startswith("cli/") for line in of_instance)
    assert {line.detail["run_id"] for line in of_instance} == {run_id}
    assert of_instance[1].detail["detail"] == "3 am" and "60" in str(of_instance[0].detail["detail"])


async def test_what_cannot_be_written_down_is_not_done(
    database: Database, database_url: str, client: Client, temporal_server: EmbeddedTemporal
) -> None:
    workflow_id = await running(client)
    async with database.transaction() as session:
        await session.execute(text("ALTER TABLE audit_log RENAME TO away"))
    for url in (database_url, f"postgresql://nobody@{NOWHERE}/x"):
        for act in (["terminate"], ["cancel"], ["signal", "stop", "--data", '{"reason": "x"}']):
            arguments = [act[0], workflow_id, *act[1:]]
            done = await shell(*arguments, temporal=temporal_server.address, database_url=url)
            assert done.returncode == 1 and "nothing was done" in done.stderr, done.stderr
    found = await find(client, workflow_id)
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    assert found.is_running and len(history.events) == 2

    # Whoever must act all the same can, and is told once that nothing keeps it.
    done = await shell("terminate", workflow_id, temporal=temporal_server.address)
    assert done.returncode == 0 and done.stderr.count("not recorded") == 1, done.stderr
    assert (await find(client, workflow_id)).status == "terminated"

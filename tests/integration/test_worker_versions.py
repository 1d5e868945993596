"""Temporal's worker versioning: a version gets work once it is promoted, and running workflows follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from operators_shell import firstlight
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from firstlight.database.connection import Database
from firstlight.database.keys_repository import list_audit
from firstlight.domain.errors import InvalidSettings, LaunchError
from firstlight.launcher.embedded.temporal_command import find_program
from firstlight.launcher.temporal_client import connect
from firstlight.launcher.worker_versions import deployment_config, list_versions, promote, ramp
from firstlight.settings import read_settings
from tests.integration.version_trial import QUEUE, UntilTold


@pytest_asyncio.fixture(scope="module")
async def client() -> AsyncIterator[Client]:
    """Of a server of this module's own: which version is current is one fact of a whole server."""
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=find_program()) as server:
        address = server.client.service_client.config.target_host
        yield await connect(read_settings(temporal_address=address))


def worker(client: Client, build_id: str) -> Worker:
    config = deployment_config(read_settings(worker_build_id=build_id))
    # Nothing cached: each task goes where the server routes it.
    return Worker(
        client, task_queue=QUEUE, workflows=[UntilTold], deployment_config=config, max_cached_workflows=0
    )


async def begin(client: Client, name: str) -> WorkflowHandle[UntilTold, str]:
    handle = await client.start_workflow(UntilTold.run, id=name, task_queue=QUEUE)
    assert await handle.query(UntilTold.has_begun)
    return handle


async def version_of(handle: WorkflowHandle[UntilTold, str]) -> str:
    info = (await handle.describe()).raw_description.workflow_execution_info
    return info.versioning_info.deployment_version.build_id


async def roles(client: Client) -> dict[str, str]:
    return {one.build_id: one.role for one in await list_versions(client)}


async def test_work_goes_to_the_promoted_version(client: Client) -> None:
    assert await list_versions(client) == []
    with pytest.raises(LaunchError, match="FIRSTLIGHT_WORKER_BUILD_ID"):
        await promote(client, "1.0", within_s=0)
    async with worker(client, "1.0"):
        await promote(client, "1.0", within_s=30)
        early, late = await begin(client, "early"), await begin(client, "late")
        async with worker(client, "2.0"):
            await ramp(client, "2.0", percent=0, within_s=30)
            assert await roles(client) == {"1.0": "current", "2.0": "ramping"}
            # It polls, and gets nothing.
            await early.signal(UntilTold.finish)
            assert await early.result() == "done"
            await promote(client, "2.0", within_s=30)
            await promote(client, "2.0", within_s=30)
            await late.signal(UntilTold.finish)
            assert await late.result() == "done"
    assert [await version_of(handle) for handle in (early, late)] == ["1.0", "2.0"]
    found = await roles(client)
    assert found["2.0"] == "current" and found["1.0"] in ("draining", "drained")


def test_without_a_build_id_nothing_is_versioned() -> None:
    assert deployment_config(read_settings()) is None
    with pytest.raises(InvalidSettings, match="FIRSTLIGHT_WORKER_BUILD_ID"):
        read_settings(worker_build_id="with space")


async def test_the_command_line_promotes_and_shows_versions(
    client: Client, database: Database, database_url: str
) -> None:
    cluster = {"temporal": client.service_client.config.target_host, "database_url": database_url}
    async with worker(client, "3.0"):
        for arguments, told in ((["promote", "3.0"], "3.0 takes new workflows"), (["list"], "current")):
            done = await asyncio.to_thread(firstlight, "workers", *arguments, **cluster)
            assert done.returncode == 0 and "not recorded" not in done.stderr, done.stderr
            assert told in done.stdout
        unrecorded = await asyncio.to_thread(
            firstlight, "workers", "promote", "3.0", temporal=cluster["temporal"]
        )
    assert unrecorded.returncode == 0 and unrecorded.stderr.count("not recorded") == 1, unrecorded.stderr
    nobody = await asyncio.to_thread(firstlight, "workers", "promote", "4.0", "--within", "0", **cluster)
    assert nobody.returncode == 1
    async with database.session() as session:
        lines = (await list_audit(session))[::-1]
    assert [(line.act, line.subject) for line in lines] == [
        ("worker promote", "worker/3.0"),
        ("worker promote", "worker/4.0"),
        ("worker promote", "worker/4.0"),
    ]
    assert lines[0].detail == {"percent": 100.0} and "polls" in str(lines[2].detail["failed"])
    assert all(line.actor.startswith("cli/") for line in lines)


async def test_no_version_is_promoted_that_cannot_be_written_down(client: Client) -> None:
    before = await list_versions(client)
    async with worker(client, "5.0"):
        done = await asyncio.to_thread(
            firstlight,
            *("workers", "promote", "5.0"),
            temporal=client.service_client.config.target_host,
            database_url="postgresql://nobody@127.0.0.1:9/x",
        )
    assert done.returncode == 1 and "nothing was done" in done.stderr
    assert [one for one in before if one.role == "current"] == [
        one for one in await list_versions(client) if one.role == "current"
    ]

"""Failed workflows found among many that were replayed to success: a real Temporal."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass

import pytest
import pytest_asyncio
from operators_shell import firstlight
from temporalio.client import Client
from temporalio.worker import Worker

from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.recovery.found import Search, query_of, search, search_latest
from tests.integration.version_trial import UntilTold

OLD, REPLAYED = 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """Two that failed, and above them five newer ones that were replayed to success."""

    client: Client
    of_it: str
    failed: frozenset[str]

    async def found(self, *, limit: int, **bounds: int) -> Search:
        return await search_latest(self.client, query_of(more=self.of_it), limit=limit, **bounds)


@pytest_asyncio.fixture
async def night(temporal_server: EmbeddedTemporal) -> Night:
    client = await Client.connect(temporal_server.address)
    queue = f"night-{uuid.uuid4().hex}"
    of_it = f'TaskQueue = "{queue}"'

    async def begin(number: int) -> str:
        handle = await client.start_workflow(UntilTold.run, id=f"{queue}/{number}", task_queue=queue)
        return handle.id

    async with Worker(client, task_queue=queue, workflows=[UntilTold]):
        names = []
        for number in range(OLD + REPLAYED):
            names.append(await begin(number))
            await client.get_workflow_handle(names[-1]).terminate("it broke")
        for number in range(OLD, OLD + REPLAYED):
            again = client.get_workflow_handle(await begin(number))
            await again.signal(UntilTold.finish)
            assert await again.result() == "done"
    # Visibility lags a little behind.
    deadline_s = asyncio.get_running_loop().time() + 20
    while len((await search(client, query_of(more=of_it), limit=100)).rows) < OLD + REPLAYED:
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0.05)
    return Night(client=client, of_it=of_it, failed=frozenset(names[:OLD]))


async def test_what_was_replayed_hides_no_older_failure(night: Night) -> None:
    found = await night.found(limit=OLD)
    assert {row.workflow_id for row in found.rows} == night.failed
    assert not found.has_more and found.gave_up_after is None


async def test_what_a_limit_leaves_out_is_said(night: Night) -> None:
    found = await night.found(limit=1)
    assert len(found.rows) == 1 and found.has_more
    given_up = await night.found(limit=1, look_at_most=REPLAYED)
    assert given_up.rows == () and given_up.gave_up_after == REPLAYED
    listed = await search(night.client, query_of(more=night.of_it), limit=REPLAYED)
    assert len(listed.rows) == REPLAYED and listed.has_more


@pytest.mark.parametrize(("limit", "warnings"), [(OLD, 0), (1, 1)])
async def test_the_command_line_shows_them_and_says_so(
    night: Night, temporal_server: EmbeddedTemporal, limit: int, warnings: int
) -> None:
    done = await asyncio.to_thread(
        firstlight,
        *("workflows", "list", "--failed", "-n", str(limit), "--query", night.of_it, "--json"),
        temporal=temporal_server.address,
    )
    rows = json.loads(done.stdout)
    assert len(rows) == limit and {row["workflow_id"] for row in rows} <= night.failed
    assert done.stderr.count("there are more than these 1: -n takes more") == warnings, done.stderr

"""The product's own processes around a real Postgres and Temporal: control worker, GPU host, its agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from firstlight.contracts.naming import RECONCILER_SCHEDULE_ID
from firstlight.contracts.starting import start_cold_start
from firstlight.contracts.starts import ColdStartInput, StartPlan
from firstlight.database import hosts_repository, instances_repository, models_repository
from firstlight.database.connection import Database
from firstlight.database.records import HostRecord, InstanceRecord, ModelSpec
from firstlight.database.starts_repository import plan_start
from firstlight.domain.lifecycle import HostState, InstanceState
from tests.integration.store_processes import command_line, descendants

MIB = 2**20
CONTROL, AGENT = "serve control-worker", "serve host-agent"


@dataclass
class LiveCluster:
    database: Database
    client: Client
    env: dict[str, str]
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def serve(self, role: str, **changes: str) -> None:
        self.processes[role] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "firstlight.cli", "serve", role.split(" ")[0], env={**self.env, **changes}
        )

    async def stop(self) -> None:
        running = [one for one in self.processes.values() if one.returncode is None]
        for process in running:
            process.terminate()
        async with asyncio.timeout(30):
            await asyncio.gather(*(process.wait() for process in running))

    async def kill(self, role: str) -> None:
        process = self.processes[role]
        process.kill()
        await process.wait()

    def agent_pid(self, role: str) -> int | None:
        pids = [pid for pid in descendants(self.processes[role].pid) if AGENT in command_line(pid)]
        return pids[0] if pids else None

    def kill_agent(self, role: str) -> None:
        pid = self.agent_pid(role)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def add_model(self, name: str, source: Path, **changes: object) -> None:
        size_bytes = sum(path.stat().st_size for path in source.iterdir())
        values: dict[str, object] = {
            "name": name,
            "source": source.as_uri(),
            "source_revision": "abcd1234",
            "checkpoint_id": f"{name}@abcd1234",
            "source_bytes": size_bytes,
            "size_bytes": size_bytes,
        }
        async with self.database.transaction() as session:
            await models_repository.create_model(session, ModelSpec(**{**values, **changes}))  # type: ignore[arg-type]

    async def plan(self, model: str) -> StartPlan:
        """Decide, and reserve the GPUs."""
        return (await self._decide(model)).plan

    async def start(self, model: str, **changes: int) -> StartPlan:
        """Decide and start the workflow, as the API does, but for `changes` of what it is asked."""
        request = replace(await self._decide(model), **changes)  # type: ignore[arg-type]
        await start_cold_start(self.client, request)
        return request.plan

    async def _decide(self, model: str) -> ColdStartInput:
        planned = await plan_start(
            self.database,
            model=model,
            deadline_s=None,
            may_wait=False,
            request_id=f"request-{model}",
            now_unix_s=time.time(),
        )
        assert planned.plan is not None, planned.decision
        return ColdStartInput(planned.plan, candidates_markdown=planned.candidates_markdown)

    async def instance(self, instance_id: str) -> InstanceRecord:
        async with self.database.session() as session:
            return await instances_repository.get_instance(session, instance_id)

    async def hosts(self) -> list[HostRecord]:
        async with self.database.session() as session:
            return await hosts_repository.list_hosts(session)

    async def until_state(self, instance_id: str, *states: InstanceState, within_s: float) -> InstanceRecord:
        deadline_s = time.monotonic() + within_s
        while (found := await self.instance(instance_id)).state not in states:
            assert found.state not in (InstanceState.STOPPED, InstanceState.FAILED), found
            assert time.monotonic() < deadline_s, (
                f"{instance_id} is {found.state} after {within_s} s: {found}"
            )
            await asyncio.sleep(0.05)
        return found

    async def until_hosts(self, number: int, *, within_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + within_s
        while sum(host.state is HostState.READY for host in await self.hosts()) < number:
            assert time.monotonic() < deadline_s, f"not {number} hosts within {within_s} s"
            await asyncio.sleep(0.1)


async def until(is_so: Callable[[], object], *, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not so within {within_s} s"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def live_cluster(
    *,
    database_url: str,
    temporal_address: str,
    state_dir: Path,
    lease_s: float = 4.0,
    client: Client | None = None,
    **settings: str,
) -> AsyncIterator[LiveCluster]:
    """`client`: the test's own, where the address is not for everyone. `settings` are of every process."""
    env = os.environ | {
        "FIRSTLIGHT_DATABASE_URL": database_url,
        "FIRSTLIGHT_TEMPORAL_ADDRESS": temporal_address,
        "FIRSTLIGHT_STATE_DIR": str(state_dir),
        "FIRSTLIGHT_SSD_CAPACITY_BYTES": str(400 * MIB),
        "FIRSTLIGHT_DRAM_CAPACITY_BYTES": str(64 * MIB),
        "FIRSTLIGHT_GPUS_PER_HOST": "2",
        "FIRSTLIGHT_LEASE_S": str(lease_s),
        "FIRSTLIGHT_RECONCILE_EVERY_S": "5",
    }
    env |= {f"FIRSTLIGHT_{name.upper()}": value for name, value in settings.items()}
    database = Database(database_url)
    cluster = LiveCluster(database, client or await Client.connect(temporal_address), dict(env))
    try:
        yield cluster
    finally:
        await cluster.stop()
        await database.close()
        await leave_no_workflow(cluster.client)


async def leave_no_workflow(client: Client) -> None:
    """The server is the session's: what this cluster began must not call upon the workers of other tests."""
    with suppress(RPCError):
        await client.get_schedule_handle(RECONCILER_SCHEDULE_ID).delete()
    async for found in client.list_workflows("ExecutionStatus = 'Running'"):
        with suppress(RPCError):
            await client.get_workflow_handle(found.id).terminate("test is over")

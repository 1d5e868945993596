"""Contract fakes of the GPU hosts' activities: starts are carried out by engines of the API's stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from api_model import model_text
from api_stand import Stand, connected
from fake_engine import TokenAt, hashed
from fleets import DIGEST
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.awaiting_gpus import until_gpus_are_ours
from activities.control import Control
from activities.errors import answering
from activities.heartbeat import beating
from activities.warmth import Warmth
from firstlight.contracts import hosts, instances, migrations, starts
from firstlight.contracts.activities import HostActivities
from firstlight.contracts.naming import host_queue
from firstlight.domain.errors import SourceCorrupt
from firstlight.launcher.control_worker import worker_of
from firstlight.launcher.temporal_client import ensure_search_attributes


@dataclass(eq=False)
class FakeHost(HostActivities):
    """One host. `gate` holds starts back, `end_gate` ends; `failure` fails starts, `download_failure`
    the downloads, for good.

    `moves` are the receipts of the next migrations; without one, nothing was there to move.
    """

    stand: Stand
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    end_gate: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str | None = None
    download_failure: str | None = None
    moves: list[migrations.MoveReceipt] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    token_at: TokenAt | None = None

    @activity.defn(name="download_checkpoint")
    @answering
    async def download_checkpoint(self, request: starts.DownloadInput) -> starts.DownloadReceipt:
        checkpoint = request.checkpoint
        async with beating("download") as heart:
            heart.note(phase="fetch", bytes_done=300_000_000, bytes_total=500_000_000)
            if self.download_failure is not None:
                raise SourceCorrupt(self.download_failure)
        return starts.DownloadReceipt(checkpoint.checkpoint_id, DIGEST, 1_100_000_000, 1, 0.0, False)

    @activity.defn(name="bring_up")
    async def bring_up(self, request: starts.BringUpInput) -> starts.BringUpReceipt:
        self.started.append(request.plan.instance_id)
        waiting = asyncio.create_task(self.gate.wait())
        while not waiting.done():
            activity.heartbeat()
            await asyncio.wait({waiting}, timeout=0.1)
        async with beating("gpus"):
            await until_gpus_are_ours(self.stand.database, request.plan)
        if self.failure is not None:
            raise ApplicationError(self.failure, type="source_corrupt", non_retryable=True)
        engine = await self.stand.run(
            request.plan, token_at=self.token_at or hashed(model_text().vocabulary_size - 4)
        )
        phases = starts.PhaseSeconds(load_s=0.01, attach_s=0.01, control_s=0.01, total_s=0.03, tier="ssd")
        return starts.BringUpReceipt(engine.endpoint, phases)

    @activity.defn(name="watch_instance")
    async def watch_instance(self, request: instances.WatchInput) -> instances.WatchReceipt:
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.1)

    @activity.defn(name="stop_instance")
    async def stop_instance(self, request: instances.StopInstanceInput) -> starts.Nothing:
        self.stopped.append(request.instance_id)
        async with beating("drain"):
            await self.end_gate.wait()
        return starts.Nothing()

    @activity.defn(name="move_requests")
    async def move_requests(self, request: migrations.MoveInput) -> migrations.MoveReceipt:
        return self.moves.pop(0) if self.moves else migrations.MoveReceipt()

    @activity.defn(name="report_inventory")
    async def report_inventory(self, request: hosts.InventoryInput) -> hosts.HostReport:
        return hosts.HostReport(request.host_id)


async def end_all_workflows(client: Client) -> None:
    """The server outlives a test, the rows its workflows speak of do not."""
    running = "ExecutionStatus = 'Running'"
    while found := [row async for row in client.list_workflows(running)]:
        for row in found:
            # One that ended meanwhile is not found: visibility lags a little.
            with suppress(RPCError):
                await client.get_workflow_handle(row.id, run_id=row.run_id).terminate("end of test")


@asynccontextmanager
async def working_cluster(stand: Stand, address: str, *host_ids: str) -> AsyncIterator[FakeHost]:
    """A control worker, and one fake behind all the hosts' queues; its gate is open."""
    client = await connected(address)
    await end_all_workflows(client)
    await ensure_search_attributes(client)
    host = FakeHost(stand)
    host.gate.set()
    host.end_gate.set()
    activities = [
        host.download_checkpoint,
        host.bring_up,
        host.watch_instance,
        host.stop_instance,
        host.move_requests,
        host.report_inventory,
    ]
    async with AsyncExitStack() as stack:
        control = Control(database=stand.database, client=client)
        warmth = Warmth(database=stand.database, client=client, settings=stand.services.settings)
        await stack.enter_async_context(worker_of(client, control, warmth))
        for host_id in host_ids:
            worker = Worker(
                client,
                task_queue=host_queue(host_id),
                activities=activities,
                max_heartbeat_throttle_interval=timedelta(milliseconds=200),
            )
            await stack.enter_async_context(worker)
        yield host
        await end_all_workflows(client)

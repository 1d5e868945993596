"""bring_up against a store and a supervisor that the test holds by the hand, and a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.bringing_up import BringUp
from activities.heartbeat import beating
from firstlight.contracts.starts import BringUpInput, BringUpReceipt, StartPlan
from firstlight.database import instances_repository
from firstlight.database.connection import Database
from firstlight.database.keys_repository import list_audit
from firstlight.database.records import InstanceRecord
from firstlight.domain.errors import ChecksumMismatch, PoolFull, SourceUnreachable, StaleEpoch
from firstlight.domain.lifecycle import InstanceState
from firstlight.rpc import host_pb2, store_pb2
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.host_pb2_grpc import HostServicer, add_HostServicer_to_server
from firstlight.rpc.server import bind, new_server
from firstlight.rpc.status import answering
from firstlight.rpc.store_pb2_grpc import StoreServicer, add_StoreServicer_to_server
from tests.integration.fleets import add_host, add_model, placed
from tests.integration.giving_way_scene import abandon, end, one_host, says


# Any: servicer contexts are generic in messages that nobody names here.
class HeldHost(StoreServicer, HostServicer):
    """Bytes come when the test says so, or fail; an engine attaches at once."""

    def __init__(self) -> None:
        self.bytes_may_end = asyncio.Event()
        self.failure: Exception | None = None
        self.fetch_failure: Exception | None = None
        self.stopped: list[str] = []
        self.attached = asyncio.Event()
        # Raised by that many loads, one after the other.
        self.full_pools = 0
        self.loads = 0
        self.is_loading = asyncio.Event()

    async def Download(self, request: Any, context: Any) -> AsyncIterator[store_pb2.DownloadProgress]:
        async with answering(context):
            yield store_pb2.DownloadProgress(phase="fetch", bytes_total=100)
            await self.bytes_may_end.wait()
            if self.fetch_failure is not None:
                raise self.fetch_failure
            await asyncio.Event().wait()

    async def Load(self, request: Any, context: Any) -> AsyncIterator[store_pb2.LoadProgress]:
        async with answering(context):
            began = time.time()
            self.loads += 1
            self.is_loading.set()
            if self.loads <= self.full_pools:
                raise PoolFull("others hold it")
            yield store_pb2.LoadProgress(bytes_total=100, from_tier="ssd", moving_at_unix_s=began)
            await self.bytes_may_end.wait()
            if self.failure is not None:
                raise self.failure
            if self.fetch_failure is not None:
                await asyncio.Event().wait()
            yield store_pb2.LoadProgress(
                bytes_done=100,
                bytes_total=100,
                from_tier="ssd",
                moving_at_unix_s=began,
                elapsed_s=time.time() - began,
                done=True,
            )

    async def Prepare(self, request: Any, context: Any) -> store_pb2.PrepareReply:
        raise AssertionError("bring_up gives no hints")

    async def GetFiles(self, request: Any, context: Any) -> store_pb2.GetFilesReply:
        raise AssertionError("bring_up reads no files")

    async def Remove(self, request: Any, context: Any) -> store_pb2.RemoveReply:
        raise AssertionError("bring_up removes nothing")

    async def ListEngines(self, request: Any, context: Any) -> host_pb2.ListEnginesReply:
        raise AssertionError("bring_up knows its engine")

    async def Inventory(self, request: Any, context: Any) -> store_pb2.InventoryReply:
        return store_pb2.InventoryReply()

    async def Attach(self, request: Any, context: Any) -> host_pb2.AttachReply:
        self.attached.set()
        return host_pb2.AttachReply(endpoint="127.0.0.1:4000", total_s=0.001)

    async def PrepareEngine(self, request: Any, context: Any) -> host_pb2.PrepareEngineReply:
        return host_pb2.PrepareEngineReply(accepted=True)

    async def Stop(self, request: Any, context: Any) -> host_pb2.StopReply:
        self.stopped.append(request.instance_id)
        return host_pb2.StopReply(was_running=True)


@asynccontextmanager
async def bringing_up(
    database: Database, held: HeldHost, plan: StartPlan, *, fetch: bool = False
) -> AsyncIterator[asyncio.Task[BringUpReceipt]]:
    server = new_server()
    add_StoreServicer_to_server(held, server)
    add_HostServicer_to_server(held, server)
    address = bind(server, bind_address="127.0.0.1", port=0)
    await server.start()
    async with Channels() as channels:
        bring_up = BringUp(StoreClient(channels, address), HostClient(channels, address), database)

        async def run() -> BringUpReceipt:
            async with beating("begin") as heart:
                return await bring_up.run(BringUpInput(plan, fetch=fetch), heart, None)

        yield asyncio.ensure_future(ActivityEnvironment().run(run))
        await server.stop(grace=0)


@asynccontextmanager
async def under_way(
    database: Database, held: HeldHost, *, fetch: bool = False
) -> AsyncIterator[tuple[StartPlan, asyncio.Task[BringUpReceipt]]]:
    """A bring_up whose engine is attached and routed to, and whose bytes still come."""
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    plan = await placed(database, "tiny")
    async with bringing_up(database, held, plan, fetch=fetch) as running:
        async with asyncio.timeout(10):
            while (await record(database, plan)).state is not InstanceState.READY:
                assert not running.done(), running
                await asyncio.sleep(0.02)
        assert not running.done(), "it ended before the bytes had come"
        yield plan, running


async def record(database: Database, plan: StartPlan) -> InstanceRecord:
    async with database.session() as session:
        return await instances_repository.get_instance(session, plan.instance_id)


@pytest.mark.parametrize("fetch", [False, True])
async def test_routed_while_bytes_come_and_done_when_they_are_there(database: Database, fetch: bool) -> None:
    held = HeldHost()
    async with under_way(database, held, fetch=fetch) as (plan, running):
        held.bytes_may_end.set()
        receipt = await running
        phases = receipt.phases
        assert (await record(database, plan)).endpoint == receipt.endpoint == "127.0.0.1:4000"
    parts_s = phases.queue_s + phases.download_s + phases.load_s + phases.attach_s + phases.control_s
    assert phases.total_s == pytest.approx(parts_s)
    assert phases.load_s > 0 and phases.attach_s == 0, "the load hid the attach"
    assert held.stopped == []


async def test_bytes_that_fail_take_the_route_back_and_end_the_engine(database: Database) -> None:
    held = HeldHost()
    held.failure = ChecksumMismatch("chunk 3 differs")
    async with under_way(database, held) as (plan, running):
        held.bytes_may_end.set()
        with pytest.raises(ChecksumMismatch):
            await running
        found = await record(database, plan)
    assert (found.state, found.endpoint) == (InstanceState.STARTING, None)
    assert held.stopped == [plan.instance_id]
    async with database.session() as session:
        [event] = await list_audit(session, subject=f"checkpoint/{plan.checkpoint.checkpoint_id}")
    assert event.act == "checkpoint quarantined"


async def test_a_download_that_fails_is_the_reason_that_is_told(database: Database) -> None:
    held = HeldHost()
    held.fetch_failure = SourceUnreachable("the source is away")
    async with under_way(database, held, fetch=True) as (plan, running):
        held.bytes_may_end.set()
        with pytest.raises(SourceUnreachable):
            await running
        assert (await record(database, plan)).state is InstanceState.STARTING
    assert held.stopped == [plan.instance_id]


@pytest.mark.parametrize("full_pools", [0, 1])
async def test_an_engine_is_attached_only_once_the_gpu_is_its_own(
    database: Database, full_pools: int
) -> None:
    """Its bytes come meanwhile; if there is no room for them either, they come then."""
    held = HeldHost()
    held.bytes_may_end.set()
    held.full_pools = full_pools
    old = await one_host(database)
    plan = await placed(database, "new", ask_engines=says())
    assert plan.awaits_gpus
    async with bringing_up(database, held, plan) as running:
        async with asyncio.timeout(10):
            await held.is_loading.wait()
        await asyncio.wait({running}, timeout=0.2)
        assert not held.attached.is_set() and not running.done()
        await end(database, old)
        receipt = await running
    assert receipt.phases.free_s >= 0.15
    assert receipt.phases.control_s < receipt.phases.total_s - 0.15, "others' slowness is no overhead of ours"
    assert held.loads == full_pools + 1


async def test_a_start_that_is_given_up_while_it_waits_attaches_nothing(database: Database) -> None:
    held = HeldHost()
    held.bytes_may_end.set()
    await one_host(database)
    plan = await placed(database, "new", ask_engines=says())
    async with bringing_up(database, held, plan) as running:
        await abandon(database, plan)
        with pytest.raises(Exception) as failed:
            await running
    assert isinstance(failed.value, StaleEpoch)
    assert not held.attached.is_set()

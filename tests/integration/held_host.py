"""A store and a supervisor that a test holds by the hand, and bring_up against them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.bringing_up import BringUp
from activities.heartbeat import beating
from activities.telling import Teller
from firstlight.contracts.starts import BringUpInput, BringUpReceipt, StartPlan
from firstlight.database.connection import Database
from firstlight.domain.errors import PoolFull
from firstlight.rpc import host_pb2, store_pb2
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.host_pb2_grpc import HostServicer, add_HostServicer_to_server
from firstlight.rpc.server import bind, new_server
from firstlight.rpc.status import answering
from firstlight.rpc.store_pb2_grpc import StoreServicer, add_StoreServicer_to_server


# Any: servicer contexts are generic in messages that nobody names here.
class HeldHost(StoreServicer, HostServicer):
    """Bytes come when the test says so, or fail; an engine attaches at once."""

    def __init__(self) -> None:
        self.bytes_may_end = asyncio.Event()
        self.failure: Exception | None = None
        self.fetch_failure: Exception | None = None
        self.stopped: list[str] = []
        self.kept_warm: list[host_pb2.KeepWarmRequest] = []
        self.attached = asyncio.Event()
        # Raised by that many loads, one after the other.
        self.full_pools = 0
        self.loads = 0
        self.is_loading = asyncio.Event()
        # The API had the engine bound so long before.
        self.bound_ahead_s = 0.0

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
        return host_pb2.AttachReply(
            endpoint="127.0.0.1:4000",
            total_s=0.001,
            age_s=self.bound_ahead_s,
            was_ahead=self.bound_ahead_s > 0,
        )

    async def PrepareEngine(self, request: Any, context: Any) -> host_pb2.PrepareEngineReply:
        return host_pb2.PrepareEngineReply(accepted=True)

    async def KeepWarm(self, request: Any, context: Any) -> host_pb2.KeepWarmReply:
        self.kept_warm.append(request)
        return host_pb2.KeepWarmReply()

    async def Stop(self, request: Any, context: Any) -> host_pb2.StopReply:
        self.stopped.append(request.instance_id)
        return host_pb2.StopReply(was_running=True)


@asynccontextmanager
async def bringing_up(
    database: Database,
    held: HeldHost,
    plan: StartPlan,
    *,
    fetch: bool = False,
    told: Database | None = None,
) -> AsyncIterator[asyncio.Task[BringUpReceipt]]:
    """`told`: where its progress is told, if that is another database."""
    server = new_server()
    add_StoreServicer_to_server(held, server)
    add_HostServicer_to_server(held, server)
    address = bind(server, bind_address="127.0.0.1", port=0)
    await server.start()
    async with Channels() as channels:
        teller = Teller(told or database)
        bring_up = BringUp(StoreClient(channels, address), HostClient(channels, address), database, teller)

        async def run() -> BringUpReceipt:
            async with beating("begin") as heart:
                return await bring_up.run(BringUpInput(plan, fetch=fetch), heart, None)

        yield asyncio.ensure_future(ActivityEnvironment().run(run))
        await server.stop(grace=0)

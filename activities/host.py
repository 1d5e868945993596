"""Activities of one GPU host: gRPC to its store and supervisor, SQL for what others must learn of it."""

from __future__ import annotations

import time

from temporalio import activity

from activities.bringing_up import BringUp
from activities.errors import answering
from activities.heartbeat import beating, last_progress
from activities.moving import move_requests
from activities.patience import until_database_answers
from activities.telling import Teller
from activities.watching import Watch
from firstlight.contracts.activities import HostActivities
from firstlight.contracts.hosts import EngineRow, HostReport, InventoryInput, StoredRow
from firstlight.contracts.instances import StopInstanceInput, WatchInput, WatchReceipt
from firstlight.contracts.migrations import MoveInput, MoveReceipt
from firstlight.contracts.starts import (
    BringUpInput,
    BringUpReceipt,
    DownloadInput,
    DownloadReceipt,
    Nothing,
)
from firstlight.database.connection import Database
from firstlight.database.hosts_repository import set_placements
from firstlight.domain.errors import NotFound, SourceUnreachable, StaleEpoch
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.store_pb2 import InventoryReply

# Engines that belong to nobody (yet) are no part of a host's report.
UNOWNED = ("starting", "spare", "exited")


def stored_rows(inventory: InventoryReply) -> list[StoredRow]:
    """What a store says it holds, as reports carry it."""
    return [
        StoredRow(
            checkpoint_id=row.checkpoint_id,
            size_bytes=row.size_bytes,
            on_ssd=row.on_ssd,
            in_dram=row.in_dram,
            quarantined=row.quarantined,
            manifest_digest=row.manifest_digest,
        )
        for row in inventory.checkpoints
    ]


class GpuHost(HostActivities):
    """`host_id` is this agent's own: work for another host on its queue would be a bug, and is refused."""

    def __init__(
        self,
        *,
        host_id: str,
        channels: Channels,
        host_address: str,
        store_address: str,
        database: Database,
    ) -> None:
        self._host_id = host_id
        self._channels = channels
        self._store = StoreClient(channels, store_address)
        self._host = HostClient(channels, host_address)
        self._database = database
        self._teller = Teller(database)
        self._bring_up = BringUp(self._store, self._host, database, self._teller)
        self._watch = Watch(channels, self._host)

    @activity.defn(name="download_checkpoint")
    @answering
    async def download_checkpoint(self, request: DownloadInput) -> DownloadReceipt:
        checkpoint = request.checkpoint
        last = None
        async with beating("download") as heart:
            async for last in self._store.download(
                checkpoint_id=checkpoint.checkpoint_id,
                source=checkpoint.source,
                dtype=checkpoint.dtype,
                expected_digest=checkpoint.manifest_digest,
                into_dram=True,
                peer_endpoints=checkpoint.peer_endpoints,
            ):
                heart.note(phase=last.phase, bytes_done=last.bytes_done, bytes_total=last.bytes_total)
            if last is None or not last.manifest_digest:
                raise SourceUnreachable(f"the download of {checkpoint.checkpoint_id} ended without a result")
            receipt = DownloadReceipt(
                checkpoint_id=checkpoint.checkpoint_id,
                manifest_digest=last.manifest_digest,
                size_bytes=last.size_bytes,
                source_bytes=last.source_bytes,
                elapsed_s=last.elapsed_s,
                was_present=last.was_present,
                came_from_peer=last.came_from_peer,
            )
            await until_database_answers(lambda: self._place_on_ssd(receipt))
        return receipt

    async def _place_on_ssd(self, receipt: DownloadReceipt) -> None:
        async with self._database.transaction() as session:
            await set_placements(
                session,
                host_id=self._host_id,
                checkpoint_id=receipt.checkpoint_id,
                ssd=True,
                dram=None,
                size_bytes=receipt.size_bytes,
                manifest_digest=receipt.manifest_digest,
            )

    @activity.defn(name="bring_up")
    @answering
    async def bring_up(self, request: BringUpInput) -> BringUpReceipt:
        async with beating("begin") as heart:
            return await self._bring_up.run(request, heart, last_progress())

    @activity.defn(name="watch_instance")
    @answering
    async def watch_instance(self, request: WatchInput) -> WatchReceipt:
        async with beating("watch"):
            return await self._watch.run(request)

    @activity.defn(name="stop_instance")
    @answering
    async def stop_instance(self, request: StopInstanceInput) -> Nothing:
        async with beating("drain"):
            try:
                await self._host.stop(
                    instance_id=request.instance_id,
                    epoch=request.epoch,
                    drain_timeout_s=request.drain_timeout_s,
                    reason=request.reason,
                )
            except (StaleEpoch, NotFound):
                # A newer owner holds the engine, or it has ended: either way ours is gone.
                activity.logger.info("%s of epoch %d is gone already", request.instance_id, request.epoch)
        return Nothing()

    @activity.defn(name="move_requests")
    @answering
    async def move_requests(self, request: MoveInput) -> MoveReceipt:
        async with beating("move") as heart:
            return await move_requests(self._channels, request, heart, self._teller)

    @activity.defn(name="report_inventory")
    @answering
    async def report_inventory(self, request: InventoryInput) -> HostReport:
        # Taken before asking: what changes meanwhile counts as newer than the report.
        taken_at_unix_s = time.time()
        stored = await self._store.inventory()
        engines = await self._host.list_engines()
        return HostReport(
            host_id=request.host_id,
            stored=stored_rows(stored),
            engines=[
                EngineRow(row.instance_id, row.epoch, row.state, row.endpoint)
                for row in engines.engines
                if row.instance_id and row.state not in UNOWNED
            ],
            taken_at_unix_s=taken_at_unix_s,
        )

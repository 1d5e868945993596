"""The gRPC Store service over the store's parts. Says and converts; decides nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from firstlight.domain.errors import Conflict, FirstlightError, UnknownCheckpoint
from firstlight.domain.names import parse_checkpoint_id
from firstlight.rpc import store_pb2 as wire
from firstlight.rpc.status import abort_with, answering
from firstlight.rpc.store_pb2_grpc import StoreServicer
from firstlight.telemetry.ids import bind
from gpu_worker.store.contents import small_files
from gpu_worker.store.download_order import DownloadOrder, DownloadState
from gpu_worker.store.loads import LoadState
from gpu_worker.store.store import Store

log = logging.getLogger("store.service")

# Any: the servicer's context is generic in messages that this code never reads through it.
Context = grpc.aio.ServicerContext[Any, Any]


class StoreService(StoreServicer):
    """See store.proto for what each call promises."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def Prepare(self, request: wire.PrepareRequest, context: Context) -> wire.PrepareReply:
        async with answering(context):
            return await self._prepared(request)

    async def Hints(
        self, request_iterator: AsyncIterator[wire.PrepareRequest], context: Context
    ) -> AsyncIterator[wire.PrepareReply]:
        await context.send_initial_metadata(())
        async for request in request_iterator:
            # A call brings this with it; a line serves one request after another.
            bind(request_id=request.instance_id)
            try:
                reply = await self._prepared(request)
            except FirstlightError as error:
                await abort_with(context, error)
            yield reply

    async def Download(
        self, request: wire.DownloadRequest, context: Context
    ) -> AsyncIterator[wire.DownloadProgress]:
        async with answering(context):
            order = DownloadOrder(
                checkpoint_id=request.checkpoint_id,
                source=request.source,
                dtype=request.dtype,
                expected_digest=request.expected_digest,
                into_dram=request.into_dram,
                peer_endpoints=tuple(request.peer_endpoints),
            )
            async with aclosing(self._store.downloads.order(order).watch()) as states:
                async for state in states:
                    yield _download_progress(state)

    async def Load(self, request: wire.LoadRequest, context: Context) -> AsyncIterator[wire.LoadProgress]:
        async with answering(context):
            parse_checkpoint_id(request.checkpoint_id)
            if (work := await self._store.reach.work(request.checkpoint_id)) is None:
                resident = self._store.loads.resident(
                    request.checkpoint_id, since_unix_s=request.since_unix_s
                )
                assert resident is not None, "what is not on its way is there"
                yield _load_progress(resident, self._store.gpu.bytes_done(request.checkpoint_id))
                return
            async with aclosing(work.watch()) as states:
                async for state in states:
                    yield _load_progress(state, self._store.gpu.bytes_done(request.checkpoint_id))

    async def GetFiles(self, request: wire.GetFilesRequest, context: Context) -> wire.GetFilesReply:
        async with answering(context):
            parse_checkpoint_id(request.checkpoint_id)
            cached = self._store.cache.find(request.checkpoint_id)
            if cached is None:
                # On its way: its engine may serve before the last of its weights is here.
                folder = await self._store.loads.small_files(request.checkpoint_id)
                return wire.GetFilesReply(files=await asyncio.to_thread(small_files, folder))
            files = await asyncio.to_thread(small_files, cached.directory)
            return wire.GetFilesReply(files=files, manifest_digest=cached.manifest_digest)

    async def Inventory(self, request: wire.InventoryRequest, context: Context) -> wire.InventoryReply:
        store = self._store
        return wire.InventoryReply(
            checkpoints=self._checkpoints(),
            ssd_capacity_bytes=store.cache.capacity_bytes,
            ssd_used_bytes=store.cache.used_bytes,
            dram_capacity_bytes=store.pool.capacity_bytes,
            dram_used_bytes=store.pool.used_bytes,
            queued_bytes=store.loads.queued_bytes,
            arena_kind=store.memory.kind,
            ssd_read_bytes_per_s=store.figures.ssd_read_bytes_per_s,
            dram_to_gpu_bytes_per_s=store.figures.dram_to_gpu_bytes_per_s,
            peer_endpoint=store.peer_endpoint,
        )

    async def Expect(self, request: wire.ExpectRequest, context: Context) -> wire.ExpectReply:
        async with answering(context):
            self._store.expect(dict(request.need), good_for_s=request.good_for_s)
            return wire.ExpectReply()

    async def Remove(self, request: wire.RemoveRequest, context: Context) -> wire.RemoveReply:
        async with answering(context):
            parse_checkpoint_id(request.checkpoint_id)
            await self._store.loads.stop_unwanted(request.checkpoint_id)
            return self._remove(request.checkpoint_id, only_dram=request.only_dram)

    async def _prepared(self, request: wire.PrepareRequest) -> wire.PrepareReply:
        parse_checkpoint_id(request.checkpoint_id)
        reply = self._prepare(request)
        # What was ordered begins now: before the log's line and the answer are written.
        await asyncio.sleep(0)
        log.info(
            "prepare checkpoint=%s instance=%s found_in=%s after_s=%.3f",
            request.checkpoint_id,
            request.instance_id,
            reply.found_in,
            time.time() - request.decided_at_unix_s if request.decided_at_unix_s else 0.0,
        )
        return reply

    def _prepare(self, request: wire.PrepareRequest) -> wire.PrepareReply:
        checkpoint_id = request.checkpoint_id
        loads, cached = self._store.loads, self._store.cache.find(checkpoint_id)
        if loads.resident(checkpoint_id) is not None:
            return wire.PrepareReply(found_in="dram")
        if (state := loads.find(checkpoint_id)) is not None:
            loads.order(checkpoint_id, ahead=request.ahead)
            moving = state.bytes_total - state.bytes_done
            return wire.PrepareReply(
                found_in="loading", bytes_to_move=moving, moving_at_unix_s=state.moving_at_unix_s
            )
        if cached is None:
            return self._prepare_absent(request)
        # Nobody watches: a failure is told to whoever asks for the load itself.
        loads.order(checkpoint_id, ahead=request.ahead)
        return wire.PrepareReply(
            found_in="ssd", bytes_to_move=cached.size_bytes, moving_at_unix_s=time.time()
        )

    def _prepare_absent(self, request: wire.PrepareRequest) -> wire.PrepareReply:
        """With a source, its download begins, into DRAM in the same pass."""
        if not request.source:
            return wire.PrepareReply(found_in="absent")
        # Nobody watches: a failure is told to whoever asks for the download itself.
        self._store.downloads.order(
            DownloadOrder(
                checkpoint_id=request.checkpoint_id,
                source=request.source,
                dtype=request.dtype,
                expected_digest=request.expected_digest,
                into_dram=True,
                peer_endpoints=tuple(request.peer_endpoints),
            )
        )
        return wire.PrepareReply(found_in="absent", moving_at_unix_s=time.time())

    def _remove(self, checkpoint_id: str, *, only_dram: bool) -> wire.RemoveReply:
        store = self._store
        cached = store.cache.find(checkpoint_id)
        if cached is None and not store.pool.is_resident(checkpoint_id):
            raise UnknownCheckpoint(f"this host does not hold {checkpoint_id}", checkpoint_id=checkpoint_id)
        if not store.may_evict(checkpoint_id):
            raise Conflict(f"{checkpoint_id} is being loaded or read", checkpoint_id=checkpoint_id)
        freed_dram = store.pool.evict(checkpoint_id) if store.pool.is_resident(checkpoint_id) else 0
        freed_ssd = store.cache.remove(checkpoint_id) if cached is not None and not only_dram else 0
        log.info("removed checkpoint=%s ssd=%d dram=%d", checkpoint_id, freed_ssd, freed_dram)
        return wire.RemoveReply(freed_ssd_bytes=freed_ssd, freed_dram_bytes=freed_dram)

    def _checkpoints(self) -> list[wire.StoredCheckpoint]:
        store = self._store
        present = [
            wire.StoredCheckpoint(
                checkpoint_id=one.checkpoint_id,
                size_bytes=one.size_bytes,
                on_ssd=True,
                in_dram=store.pool.is_resident(one.checkpoint_id),
                loading=store.loads.is_running(one.checkpoint_id),
                pins=store.pool.pins(one.checkpoint_id),
                manifest_digest=one.manifest_digest,
                last_used_unix_s=one.last_used_unix_s,
            )
            for one in store.cache.checkpoints
        ]
        gone = [name for name in store.cache.quarantined() if store.cache.find(name) is None]
        return [*present, *(wire.StoredCheckpoint(checkpoint_id=name, quarantined=True) for name in gone)]


def _download_progress(state: DownloadState) -> wire.DownloadProgress:
    return wire.DownloadProgress(
        phase=state.phase,
        bytes_done=state.bytes_done,
        bytes_total=state.bytes_total,
        elapsed_s=time.monotonic() - state.began_monotonic_s,
        manifest_digest=state.manifest_digest,
        size_bytes=state.size_bytes,
        source_bytes=state.source_bytes,
        was_present=state.was_present,
        came_from_peer=state.came_from_peer,
        remote_bytes=state.remote_bytes,
        ssd_bytes=state.ssd_bytes,
        dram_bytes=state.dram_bytes,
    )


def _load_progress(state: LoadState, gpu_bytes: int) -> wire.LoadProgress:
    return wire.LoadProgress(
        bytes_done=state.bytes_done,
        bytes_total=state.bytes_total,
        queue_s=state.queue_s,
        elapsed_s=state.elapsed_s,
        from_tier=state.from_tier,
        done=state.is_done,
        moving_at_unix_s=state.moving_at_unix_s,
        gpu_bytes=gpu_bytes,
        remote_bytes=state.bytes_done if state.from_tier in ("remote", "peer") else 0,
        ssd_bytes=state.bytes_done if state.from_tier == "ssd" else 0,
        dram_bytes=state.bytes_done,
        checksum_cpu_s=state.checksum_cpu_s,
    )

"""One streamed download, from the first header to a whole checkpoint that only has to take its name.

staging/<id>/stamp.json   which source, revision and type the rest belongs to
staging/<id>/headers/     configuration, and weight files as headers over holes
staging/<id>/plan/        the plan; kept, so that a download that was killed does not plan again
staging/<id>/journal      chunks that are on the SSD
staging/<id>/whole/       partitions, small files, at last the manifest
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.domain.errors import (
    Cancelled,
    CheckpointMismatch,
    Conflict,
    FirstlightError,
    PoolFull,
    StorageError,
)
from gpu_worker.convert.stream_plan import StreamPlan
from gpu_worker.store.disk import allocated_bytes
from gpu_worker.store.download_order import DownloadOrder
from gpu_worker.store.landing import Landing
from gpu_worker.store.loads import Loads
from gpu_worker.store.sources import Layout, Source, SourceDescription
from gpu_worker.store.streaming.ahead import ReadAhead
from gpu_worker.store.streaming.assembly import finished_manifest, offer_folder, write_files, write_small
from gpu_worker.store.streaming.chunk_book import ChunkBook
from gpu_worker.store.streaming.chunk_journal import ChunkJournal
from gpu_worker.store.streaming.headers import fetch_whole, later_files
from gpu_worker.store.streaming.native import fetch_native_file
from gpu_worker.store.streaming.partition_files import PartitionFiles
from gpu_worker.store.streaming.pipeline import Stream, StreamProgress
from gpu_worker.store.streaming.planner import Planner
from gpu_worker.store.streaming.preparation import HEADERS, WHOLE, Preparation, Prepared
from gpu_worker.store.streaming.room import ArenaRoom, RingRoom, Room
from native_loader.load_order import chunks_in_order
from native_loader.manifest import CHUNK_BYTES, Manifest

log = logging.getLogger("store.stream")

# Of the offered folder: what stands beside the weights, for readers of text.
SMALL = "small"
_BLOCK_BYTES, _MOST_BLOCKS = 2**20, 2**15
_FIRST_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.0\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedBytes:
    """How far it is. `bytes_done` counts the source's bytes, those of an earlier run included."""

    bytes_done: int
    bytes_total: int
    remote_bytes: int
    dram_bytes: int
    ssd_bytes: int


class Session:
    """One attempt at one source. What it leaves in `staging` when it fails is where the next one goes on."""

    def __init__(
        self,
        *,
        order: DownloadOrder,
        source: Source,
        description: SourceDescription,
        staging: Path,
        offered: Path,
        planner: Planner,
        loads: Loads | None,
        tier: str,
        parallelism: int,
        reserve: Callable[[int], None],
        on_progress: Callable[[StreamedBytes], None],
    ) -> None:
        self._order = order
        self._source = source
        self._description = description
        self._files = {file.name: file for file in description.files}
        self._staging = staging
        self._offered = offered
        self._planner = planner
        self._loads = loads
        self._tier = tier
        self._parallelism = parallelism
        self._reserve = reserve
        self._on_progress = on_progress
        self._ahead = ReadAhead(source, description, parallelism=parallelism)
        self._preparation = Preparation(
            order=order,
            source=source,
            description=description,
            staging=staging,
            planner=planner,
            ahead=self._ahead,
        )
        self._past_first_layer = asyncio.Event()

    async def run(self) -> Path:
        """The folder of a whole checkpoint, on the device, ready to be renamed.

        Raises: ConvertWhole; every SourceError, CheckpointError and StorageError.
        """
        try:
            prepared = await self._preparation.run()
            self._reserve(prepared.plan.manifest.size_bytes + self._small_bytes())
            return await self._streamed(prepared)
        finally:
            await self._ahead.stop()
            self._ahead.drop()

    async def _streamed(self, prepared: Prepared) -> Path:
        plan = prepared.plan
        whole = self._staging / WHOLE
        # Of many pieces these take a while: others are served meanwhile.
        book = await asyncio.to_thread(ChunkBook, plan)
        digest = await asyncio.to_thread(plan.digest_of_pieces)
        landing = self._landing(plan)
        disk: PartitionFiles | None = None
        try:
            with ChunkJournal(self._staging, revision=prepared.identity, plan=digest) as journal:
                disk = await asyncio.to_thread(PartitionFiles, whole, plan.manifest)
                chunk_bytes = plan.manifest.chunk_bytes
                room: Room = RingRoom(chunk_bytes=chunk_bytes)
                if landing is not None:
                    blocks = self._block_bytes(plan)
                    # Not in a thread: it writes to the arena, and a cancellation gives that to another.
                    room = ArenaRoom(landing, book, chunk_bytes=chunk_bytes, block_bytes=blocks)
                stream = self._stream(prepared, book, room, disk, journal)
                await self._bring(plan, stream, landing, disk)
            return whole
        except BaseException as failure:  # cancellation too: who waits for the landing must hear of it
            if landing is not None:
                landing.abandon(_said(failure))
            raise
        finally:
            if disk is not None:
                disk.close()

    def _block_bytes(self, plan: StreamPlan) -> int:
        """How finely readers are told what has come."""
        is_summed_before = plan.has_checksums or len(plan.manifest.partitions) != 1
        return plan.manifest.chunk_bytes if is_summed_before else block_bytes_for(plan.manifest.size_bytes)

    def _landing(self, plan: StreamPlan) -> Landing | None:
        manifest = plan.manifest
        if self._loads is None or not self._order.into_dram:
            return None
        sizes = [partition.size_bytes for partition in manifest.partitions]
        lengths = [chunk.length for chunk in chunks_in_order(sizes, self._block_bytes(plan))]
        try:
            return self._loads.land(self._order.checkpoint_id, sizes, lengths, tier=self._tier)
        except (PoolFull, Conflict) as reason:
            log.info("to ssd only checkpoint=%s: %s", self._order.checkpoint_id, reason.message)
            return None

    def _stream(
        self, prepared: Prepared, book: ChunkBook, room: Room, disk: PartitionFiles, journal: ChunkJournal
    ) -> Stream:
        plan = prepared.plan
        first_layer = [entry.name for entry in plan.manifest.tensors if _FIRST_LAYER.search(entry.name)]
        prefix_bytes = plan.manifest.prefix_bytes_for(first_layer)
        earlier = sum(piece.source_bytes for index in journal.done for piece in book.entries[index].pieces)

        def told(progress: StreamProgress) -> None:
            if progress.summed_bytes >= prefix_bytes:
                self._past_first_layer.set()
            self._on_progress(
                StreamedBytes(
                    bytes_done=min(earlier + progress.remote_bytes, plan.source_bytes),
                    bytes_total=plan.source_bytes,
                    remote_bytes=progress.remote_bytes,
                    dram_bytes=progress.dram_bytes,
                    ssd_bytes=progress.ssd_bytes,
                )
            )

        return Stream(
            source=self._source,
            files=self._files,
            book=book,
            room=room,
            disk=disk,
            journal=journal,
            parallelism=self._parallelism,
            latency_s=prepared.latency_s,
            ahead=None if self._description.layout is Layout.CHECKPOINT else self._ahead,
            on_progress=told,
        )

    async def _bring(
        self, plan: StreamPlan, stream: Stream, landing: Landing | None, disk: PartitionFiles
    ) -> None:
        if landing is not None and plan.files:
            blocks = self._block_bytes(plan)
            await asyncio.to_thread(offer_folder, plan, dict(plan.files), self._offered, chunk_bytes=blocks)
            landing.offer(self._offered)
        running = asyncio.ensure_future(stream.run())
        small = asyncio.ensure_future(self._small_files(plan, landing))
        offering = asyncio.ensure_future(self._offer_files(small, landing))
        try:
            files = await _before(stream.resident, running, small)
            await offering
            manifest, text = finished_manifest(plan, stream.crc32c, files)
            self._verify(manifest)
            await asyncio.to_thread(write_files, self._staging / WHOLE, files, text)
            if landing is not None:
                landing.commit()
            await running
            await asyncio.to_thread(disk.sync)
        finally:
            for task in (small, running, offering):
                task.cancel()
            # The stream's threads have stopped when this returns: only then may its room go to another.
            await asyncio.gather(small, running, offering, return_exceptions=True)

    async def _offer_files(self, small: asyncio.Future[dict[str, bytes]], landing: Landing | None) -> None:
        """Hand the small files out as soon as they are there, long before the weights are."""
        if landing is None:
            return
        await asyncio.wait([small])
        if not small.cancelled() and small.exception() is None:
            folder = self._offered / SMALL
            await asyncio.to_thread(write_small, folder, small.result())
            landing.offer_files(folder)

    async def _small_files(self, plan: StreamPlan, landing: Landing | None) -> dict[str, bytes]:
        """Those of the plan and the rest, which must not hold up the first layer."""
        if plan.has_checksums:
            return await self._native_files(plan, landing)
        later = later_files(self._description)
        if not later and self._description.layout is not Layout.GGUF:
            return dict(plan.files)
        await self._past_first_layer.wait()
        headers, output = self._staging / HEADERS, self._staging / "tokenizer"
        for file in later:
            await fetch_whole(self._source, file, headers)
        names = await self._planner.tokenizer(headers, output)
        return dict(plan.files) | {name: (output / name).read_bytes() for name in names}

    async def _native_files(self, plan: StreamPlan, landing: Landing | None) -> dict[str, bytes]:
        names = sorted((entry.name for entry in plan.manifest.files), key=lambda name: "config" not in name)
        found = {}
        for name in names:
            found[name] = await fetch_native_file(self._source, plan.manifest, self._files[name])
            if landing is not None and name == names[-1]:
                blocks = self._block_bytes(plan)
                await asyncio.to_thread(offer_folder, plan, found, self._offered, chunk_bytes=blocks)
                landing.offer(self._offered)
        return found

    def _verify(self, manifest: Manifest) -> None:
        """Raises: CheckpointMismatch when these are not the bytes that the first conversion recorded."""
        expected = self._order.expected_digest
        if expected not in ("", manifest.digest):
            raise CheckpointMismatch(
                f"{self._order.checkpoint_id} from its source has digest {manifest.digest[:16]}…, but the "
                f"first conversion recorded {expected[:16]}…",
                checkpoint_id=self._order.checkpoint_id,
            )

    def _small_bytes(self) -> int:
        weights = (".safetensors", ".bin", ".gguf")
        files = self._description.files
        small = sum(file.size_bytes for file in files if not file.name.lower().endswith(weights))
        if self._description.layout is Layout.GGUF:
            small = allocated_bytes(self._staging / HEADERS)  # a vocabulary, in its header
        # As much again for what is made of them, and for a manifest that is not written yet.
        return 2 * small + 2**20


async def _before(
    resident: asyncio.Event, running: asyncio.Future[None], small: asyncio.Future[dict[str, bytes]]
) -> dict[str, bytes]:
    """The small files, once every chunk is summed too. Raises what ended either."""
    waiting = asyncio.ensure_future(resident.wait())
    try:
        for needed in (waiting, small):
            others: set[asyncio.Future[Any]] = {running, small}
            while not needed.done():
                await asyncio.wait({needed, *others}, return_when=asyncio.FIRST_COMPLETED)
                for ended in [one for one in others if one.done()]:
                    ended.result()
                    others.discard(ended)
        return small.result()
    finally:
        waiting.cancel()


def block_bytes_for(size_bytes: int) -> int:
    """A megabyte; more for what would have too many of them. Divides a chunk."""
    block_bytes = _BLOCK_BYTES
    while block_bytes < CHUNK_BYTES and size_bytes > block_bytes * _MOST_BLOCKS:
        block_bytes *= 2
    return block_bytes


def _said(failure: BaseException) -> FirstlightError:
    if isinstance(failure, FirstlightError):
        return failure
    if isinstance(failure, asyncio.CancelledError):
        return Cancelled("the download was stopped")
    return StorageError(f"the download failed: {failure}")

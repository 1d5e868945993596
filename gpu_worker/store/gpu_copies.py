"""Copies of checkpoints from the arena to GPU memory that engines have lent, as their bytes arrive.

One copy a reader at a time, all partitions side by side. What a reader lent is open here only while it is
copied to: when the outcome is known, or the reader is gone, nothing of the store's holds it any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from firstlight.domain.errors import (
    Conflict,
    FirstlightError,
    GpuError,
    GpuMemoryFull,
    GpuUnavailable,
    NotFound,
)
from gpu_worker.store.extents import Extent
from gpu_worker.store.gpu_devices import GpuDevices
from native_loader import Arena, GpuCopyJob, GpuCopyReport, GpuMemory, ProgressBoard
from native_loader.gpu_chunks import gpu_chunks

log = logging.getLogger("store.gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTarget:
    """Where a partition goes: a GPU by its uuid, and the handle of an engine's memory there."""

    gpu: str
    handle: bytes


@dataclass(slots=True)
class _Copy:
    checkpoint_id: str
    board: ProgressBoard
    targets: Sequence[GpuTarget]
    memories: list[GpuMemory] = field(default_factory=list)
    jobs: list[GpuCopyJob] = field(default_factory=list)
    outcome: asyncio.Task[list[GpuCopyReport]] | None = None


class GpuCopies:
    """Belongs to the store's event loop."""

    def __init__(self, *, devices: GpuDevices, arena: Arena) -> None:
        self._devices = devices
        self._arena = arena
        self._copies: dict[str, _Copy] = {}

    async def begin(
        self,
        reader: str,
        checkpoint_id: str,
        *,
        extents: Sequence[Extent],
        targets: Sequence[GpuTarget],
        chunk_bytes: int,
        source_board: ProgressBoard | None,
    ) -> ProgressBoard:
        """Start to copy partition i from `extents[i]` to `targets[i]`; the board tells what is on the GPUs.

        Its chunks and their order are those of a load into DRAM. `reader` must hold a pin, and must not free
        the memory before it knows the outcome. Raises: Conflict, GpuError, InvalidInput.
        """
        if reader in self._copies:
            raise Conflict("this reader's copy to a GPU is not over", reader=reader)
        sizes = [extent.size_bytes for extent in extents]
        chunks = gpu_chunks(sizes, [extent.offset for extent in extents], chunk_bytes=chunk_bytes)
        copy = _Copy(checkpoint_id, ProgressBoard(chunks.lengths), targets)
        self._copies[reader] = copy
        try:
            for target, size_bytes in zip(targets, sizes, strict=True):
                device = await self._devices.device(target.gpu)
                opened = await asyncio.to_thread(device.open_memory, target.handle, size_bytes)
                copy.memories.append(opened)
            for memory, listed in zip(copy.memories, chunks.of_partition, strict=True):
                copy.jobs.append(
                    GpuCopyJob(
                        memory,
                        self._arena,
                        listed,
                        copy.board,
                        source_board=source_board,
                        pinning=self._devices.pinning,
                    )
                )
        except BaseException:
            await self._release(copy)
            del self._copies[reader]
            raise
        copy.outcome = asyncio.get_running_loop().create_task(self._follow(copy))
        return copy.board

    async def outcome(self, reader: str) -> list[GpuCopyReport]:
        """Waits for the end of the reader's copy; then its memory is the reader's alone again.

        Raises: NotFound when it has none, and why the copy failed.
        """
        copy = self._copies.get(reader)
        if copy is None or copy.outcome is None:
            raise NotFound("this reader has no copy to a GPU", reader=reader)
        try:
            return await asyncio.shield(copy.outcome)
        finally:
            if copy.outcome.done():
                self._copies.pop(reader, None)

    def bytes_done(self, checkpoint_id: str) -> int:
        """On GPUs already, of copies under way, of the one that is furthest."""
        boards = [copy.board for copy in self._copies.values() if copy.checkpoint_id == checkpoint_id]
        return max((board.bytes_done for board in boards), default=0)

    async def drop_reader(self, reader: str) -> None:
        """Stop the copy of a reader that is gone. When it returns, nothing reads the extents for it."""
        copy = self._copies.pop(reader, None)
        if copy is None:
            return
        for job in copy.jobs:
            job.cancel()
        if copy.outcome is not None:
            await asyncio.gather(copy.outcome, return_exceptions=True)

    async def close(self) -> None:
        for reader in list(self._copies):
            await self.drop_reader(reader)

    async def _follow(self, copy: _Copy) -> list[GpuCopyReport]:
        try:
            await self._release(copy)
            reports = [job.result(timeout_s=0) for job in copy.jobs]
        except FirstlightError as failure:
            self._note(copy, failure)
            raise
        log.info(
            "copied checkpoint=%s bytes=%d pinned=%d bounced=%d pageable=%d in_s=%.3f waited_s=%.3f",
            copy.checkpoint_id,
            sum(report.size_bytes for report in reports),
            sum(report.pinned_bytes for report in reports),
            sum(report.bounced_bytes for report in reports),
            sum(report.pageable_bytes for report in reports),
            max((report.seconds for report in reports), default=0.0),
            max((report.waited_s for report in reports), default=0.0),
        )
        return reports

    async def _release(self, copy: _Copy) -> None:
        """Wait for the end of every job, then close what was lent."""
        for job in copy.jobs:
            await asyncio.to_thread(job.wait)
        for memory in copy.memories:
            await asyncio.to_thread(memory.close)

    def _note(self, copy: _Copy, failure: FirstlightError) -> None:
        log.warning("copy of checkpoint=%s to a GPU failed: %s", copy.checkpoint_id, failure.message)
        for target, job in zip(copy.targets, copy.jobs, strict=True):
            try:
                job.result(timeout_s=0)
            except (GpuMemoryFull, GpuUnavailable):
                continue
            except GpuError as broken:
                self._devices.condemn(target.gpu, broken)
            except FirstlightError:
                continue

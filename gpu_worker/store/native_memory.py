"""The native loader as the store's Memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from gpu_worker.store.extents import Extent
from gpu_worker.store.host_memory import granted_bytes, lock
from gpu_worker.store.memory import Memory, Readable, Transfer
from native_loader import Arena, Checkpoint, LoadJob, ProgressBoard, Segment, open_checkpoint
from native_loader.manifest import MANIFEST_NAME


class NativeTransfer(Transfer):
    """A LoadJob whose end is waited for through its event descriptor."""

    def __init__(self, job: LoadJob, board: ProgressBoard) -> None:
        self._job = job
        self.board = board

    @property
    def bytes_done(self) -> int:
        return self._job.bytes_done

    @property
    def moving_at_unix_s(self) -> float | None:
        return self._job.first_read_at_unix_s

    def pause(self) -> None:
        self._job.pause()

    def resume(self) -> None:
        self._job.resume()

    async def wait(self) -> None:
        try:
            await self._ended()
        except asyncio.CancelledError:
            # Its threads still write: the extents may go to nobody until the last of them has stopped.
            self._job.cancel()
            await asyncio.to_thread(self._job.wait)
            raise
        self.checksum_cpu_s = self._job.result(timeout_s=0).checksum_seconds

    async def _ended(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._job.event_fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._job.event_fd)


class NativeReadable(Readable):
    """A checkpoint in our own format."""

    def __init__(
        self, checkpoint: Checkpoint, arena: Arena, *, threads: int, populate: bool, registered: bool
    ) -> None:
        self._registered = registered
        self._checkpoint = checkpoint
        self._arena = arena
        self._threads = threads
        self._populate = populate

    @property
    def partition_sizes(self) -> tuple[int, ...]:
        return tuple(partition.size_bytes for partition in self._checkpoint.manifest.partitions)

    @cached_property
    def chunk_lengths(self) -> tuple[int, ...]:
        return tuple(segment.length for segment in self._chunks)

    def begin_chunks(self, first: int, arena_offsets: Sequence[int]) -> NativeTransfer:
        chunks = self._chunks[first : first + len(arena_offsets)]
        return self._begin(
            [
                Segment(
                    path=chunk.path,
                    file_offset=chunk.file_offset,
                    length=chunk.length,
                    arena_offset=offset,
                    crc32c=chunk.crc32c,
                )
                for chunk, offset in zip(chunks, arena_offsets, strict=True)
            ]
        )

    @cached_property
    def _chunks(self) -> list[Segment]:
        return self._checkpoint.segments([0] * len(self._checkpoint.manifest.partitions))

    def begin(self, extents: Sequence[Extent]) -> NativeTransfer:
        return self._begin(self._checkpoint.segments([extent.offset for extent in extents]))

    def _begin(self, segments: Sequence[Segment]) -> NativeTransfer:
        board = ProgressBoard([segment.length for segment in segments])
        job = LoadJob(
            self._arena,
            segments,
            threads=self._threads,
            populate=self._populate,
            registered=self._registered,
            board=board,
        )
        return NativeTransfer(job, board)


class NativeMemory(Memory):
    """One arena, of the best kind this machine grants. Raises: PoolFull when it grants none.

    `registered`: each load has the kernel keep its pages at hand, if that lets it; else it is as without.
    """

    def __init__(self, *, size_bytes: int, threads: int, registered: bool = False) -> None:
        self._registered = registered
        self._arena = self.arena = Arena(granted_bytes(size_bytes), "auto")
        self._threads = threads
        self._is_resident = False
        # Checkpoints never change in place, so one that was validated once is read at once the next time.
        self._opened: dict[Path, tuple[tuple[int, int, int], Checkpoint]] = {}
        self.kind = self._arena.kind
        self.size_bytes = self._arena.size_bytes

    def read_only_fd(self) -> int:
        return self._arena.read_only_fd()

    def view(self, extent: Extent) -> memoryview:
        return self._arena.buffer(extent.offset, extent.size_bytes)

    def prefault(self) -> None:
        self._arena.prefault(threads=1)
        self._is_resident = True
        if self.kind != "hugetlb":  # whose pages stay as they are
            lock(self._arena.buffer())

    async def open(self, directory: Path) -> NativeReadable:
        # Until the background has touched every page, a load makes its own resident as it goes.
        return NativeReadable(
            await self._checkpoint(directory),
            self._arena,
            threads=self._threads,
            populate=not self._is_resident,
            registered=self._registered,
        )

    async def _checkpoint(self, directory: Path) -> Checkpoint:
        try:
            found = (directory / MANIFEST_NAME).stat()
        except OSError:
            self._opened.pop(directory, None)
            return await asyncio.to_thread(open_checkpoint, directory)
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        kept = self._opened.get(directory)
        if kept is None or kept[0] != stamp:
            kept = (stamp, await asyncio.to_thread(open_checkpoint, directory))
            self._opened[directory] = kept
        return kept[1]

"""The execution of a plan: requests out, chunks in, each summed, made known and written as it is whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from firstlight.domain.errors import ChecksumMismatch, SourceUnreachable
from gpu_worker.convert.stream_plan import Piece
from gpu_worker.store.sources import Source, SourceFile
from gpu_worker.store.streaming.ahead import ReadAhead
from gpu_worker.store.streaming.casting import cast_into, copy_into
from gpu_worker.store.streaming.chunk_book import ChunkBook, ChunkEntry
from gpu_worker.store.streaming.chunk_journal import ChunkJournal
from gpu_worker.store.streaming.pace import Pace
from gpu_worker.store.streaming.partition_files import PartitionFiles
from gpu_worker.store.streaming.request_queue import Request, RequestQueue
from gpu_worker.store.streaming.room import Room
from gpu_worker.store.streaming.unpacking import unpack_into
from native_loader import crc32c

log = logging.getLogger("store.stream")

ATTEMPTS = 4
WRITERS = 2
WORKERS = 2
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """Bytes the source gave, and bytes of the destination that were summed and that reached each tier."""

    remote_bytes: int
    summed_bytes: int
    dram_bytes: int
    ssd_bytes: int


class Stream:
    """One plan on its way. When `run` ends, however it does, no thread writes to the room any more."""

    def __init__(
        self,
        *,
        source: Source,
        files: dict[str, SourceFile],
        book: ChunkBook,
        room: Room,
        disk: PartitionFiles,
        journal: ChunkJournal,
        parallelism: int,
        latency_s: float = 0.0,
        ahead: ReadAhead | None = None,
        on_progress: Callable[[StreamProgress], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._files = files
        self._book = book
        self._room = room
        self._disk = disk
        self._journal = journal
        self._parallelism = parallelism
        self._ahead = ahead
        self._on_progress = on_progress
        self._pace = Pace(parallelism=parallelism, latency_s=latency_s)
        self._remote_bytes = 0
        self._summed_bytes = 0
        self._ssd_bytes = 0
        self._fetched_twice: set[int] = set()
        self.crc32c: dict[int, int] = {}
        self.resident = asyncio.Event()
        self._queue = RequestQueue([])
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="stream")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="stream-ssd")

    async def run(self) -> None:
        """Until every chunk is on the SSD; `resident` is set once every chunk has been summed.

        Raises: SourceUnreachable, SourceCorrupt, ChecksumMismatch, DiskFull, StorageError.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                there = await self._resume()
                if self._ahead is not None:
                    await self._ahead.wind_up()
                seams = self._ahead.seams if self._ahead is not None else ()
                ordered = partial(RequestQueue, self._book.entries, seams=seams, skip=there)
                self._queue = await self._in(self._workers, ordered)
                if not self._book.entries:
                    self.resident.set()
                for entry in self._book.entries:
                    if not entry.missing_bytes and entry.index not in there:
                        self._begin_finish(entry)
                self._tell()
                for _ in range(self._parallelism):
                    group.create_task(self._read_on())
        except BaseExceptionGroup as failures:
            raise _first(failures) from failures
        finally:
            self._close()

    def _close(self) -> None:
        # Both wait for the threads: the room's memory goes to somebody else after this.
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)
        if self._ahead is not None:
            self._ahead.drop()

    async def _resume(self) -> set[int]:
        """Chunks that an earlier run left on the SSD, brought into the room if they have their checksums."""
        believed = [entry for entry in self._book.entries if entry.index in self._journal.done]
        there = set()
        for entry in believed:
            await self._room.enter(entry)
            crc = await self._in(self._writers, self._read_back, entry)
            if crc != self._journal.done[entry.index]:
                self._room.written(entry)
                continue
            there.add(entry.index)
            self._ssd_bytes += entry.chunk.length
            self._summed(entry, crc)
            self._room.written(entry)
            self._tell()
        if believed:
            log.info("stream resumed chunks=%d of=%d", len(there), len(self._book.entries))
        return there

    def _read_back(self, entry: ChunkEntry) -> int | None:
        view = self._room.view(entry)
        return crc32c(view) if self._disk.read(entry, view) else None

    async def _read_on(self) -> None:
        while (request := self._queue.take(self._pace.request_bytes)) is not None:
            for part in request.parts:
                await self._room.enter(self._book.entries[part.chunk])
            if self._goes_in_place(request):
                await self._fetch_in_place(request)
            else:
                data = await self._fetched(request)
                await self._in(self._workers, self._scatter, request, data)
            self._remote_bytes += request.size_bytes
            for part in request.parts:
                entry = self._book.entries[part.chunk]
                self._room.arrived(entry, part.piece.start, part.piece.size_bytes)
                if self._book.arrived(part.chunk, part.piece.size_bytes):
                    self._begin_finish(entry)
            self._tell()

    async def _fetched(self, request: Request) -> memoryview:
        file = self._files[request.file]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if attempt == 1 and self._ahead is not None:
                    early = await self._ahead.take(file, request.start, request.size_bytes)
                    if early is not None:
                        return early
                data = await self._source.read_range(file, start=request.start, size_bytes=request.size_bytes)
                self._pace.note(request.size_bytes)
                return data
            except SourceUnreachable as failure:
                if attempt == ATTEMPTS:
                    raise
                log.warning("retry=%d file=%s at=%d: %s", attempt, file.name, request.start, failure)
                await asyncio.sleep(0.2 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _goes_in_place(self, request: Request) -> bool:
        is_one_copy = len(request.parts) == 1 and request.parts[0].piece.is_copy
        return self._source.reads_in_place and is_one_copy

    async def _fetch_in_place(self, request: Request) -> None:
        """What comes as it is to be goes where it is to be: no buffer, no copy."""
        (part,) = request.parts
        file = self._files[request.file]
        into = self._place(self._book.entries[part.chunk], part.piece)
        await self._source.read_into(file, start=request.start, into=into)
        self._pace.note(request.size_bytes)

    def _scatter(self, request: Request, data: memoryview) -> None:
        """On a worker thread: every part to its place."""
        for (chunk, is_packed), parts in groupby(request.parts, lambda one: (one.chunk, one.piece.is_packed)):
            place = partial(self._place, self._book.entries[chunk])
            pieces = [part.piece for part in parts]
            if is_packed:
                unpack_into(place, pieces, data, data_start=request.start)
                continue
            for piece in pieces:
                at = piece.source_start - request.start
                given = data[at : at + piece.source_bytes]
                if piece.is_copy:
                    copy_into(place(piece), given)
                else:
                    cast_into(place(piece), given, piece.dtypes)

    def _place(self, entry: ChunkEntry, piece: Piece) -> memoryview:
        start = piece.start - entry.chunk.start
        return self._room.view(entry)[start : start + piece.size_bytes]

    def _begin_finish(self, entry: ChunkEntry) -> None:
        self._group.create_task(self._finish(entry))

    async def _finish(self, entry: ChunkEntry) -> None:
        await self._room.enter(entry)
        crc = await self._in(self._workers, self._sum, entry)
        if entry.known_crc32c not in (None, crc):
            self._fetch_again(entry)
            return
        self._summed(entry, crc)
        self._tell()
        await self._in(self._writers, self._disk.write, entry, self._room.view(entry))
        self._journal.record(entry.index, crc)
        self._ssd_bytes += entry.chunk.length
        self._room.written(entry)
        self._tell()

    def _sum(self, entry: ChunkEntry) -> int:
        """On a worker thread. What no piece fills may hold another checkpoint's bytes: it becomes zero."""
        view = self._room.view(entry)
        for start, end in entry.gaps():
            view[start:end] = bytes(end - start)
        return crc32c(view)

    def _summed(self, entry: ChunkEntry, crc: int) -> None:
        self.crc32c[entry.index] = crc
        self._summed_bytes += entry.chunk.length
        self._room.summed(entry)
        if len(self.crc32c) == len(self._book.entries):
            self.resident.set()

    def _fetch_again(self, entry: ChunkEntry) -> None:
        """Once: the link may have flipped a bit. Raises: ChecksumMismatch the second time."""
        if entry.index in self._fetched_twice:
            raise ChecksumMismatch(
                f"chunk {entry.index} of the source differs from its checksum, twice", chunk=entry.index
            )
        log.warning("chunk=%d differs from its checksum: fetched again", entry.index)
        self._fetched_twice.add(entry.index)
        self._book.reopen(entry.index)
        self._queue.put_back(entry)
        # The readers may all have ended by now.
        self._group.create_task(self._read_on())

    def _tell(self) -> None:
        dram_bytes = self._room.dram_bytes
        self._on_progress(StreamProgress(self._remote_bytes, self._summed_bytes, dram_bytes, self._ssd_bytes))

    # Any: whatever the function takes.
    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Answer], *arguments: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first

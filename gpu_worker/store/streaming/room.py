"""Where chunks stand between the network and the SSD: in the DRAM pool, or in a ring of buffers."""

from __future__ import annotations

import asyncio
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator

from gpu_worker.store.landing import Landing
from gpu_worker.store.streaming.chunk_book import ChunkBook, ChunkEntry

RING_CHUNKS = 8


class Room(ABC):
    """A buffer for each chunk, page-aligned, from its first byte until it is on the SSD."""

    @abstractmethod
    async def enter(self, entry: ChunkEntry) -> None:
        """Have a buffer for the chunk; waits when there is none. Idempotent."""

    @abstractmethod
    def view(self, entry: ChunkEntry) -> memoryview:
        """Its writable bytes, after `enter`."""

    @abstractmethod
    def arrived(self, entry: ChunkEntry, start: int, size_bytes: int) -> None:
        """These bytes of its partition are there; the chunk has not been summed yet."""

    @abstractmethod
    def summed(self, entry: ChunkEntry) -> None:
        """Every byte is there and verified."""

    @abstractmethod
    def written(self, entry: ChunkEntry) -> None:
        """It is on the SSD: its buffer may go to another."""

    @property
    @abstractmethod
    def dram_bytes(self) -> int:
        """Bytes that are in the DRAM pool."""


class ArenaRoom(Room):
    """The extents of a landing. Its board counts blocks of `block_bytes`, which divide a chunk.

    With blocks as large as chunks a reader sees what has been verified. Smaller ones are for bytes that no
    checksum is known of: they are there when they have come, and all around them that stays zero is zero.
    """

    def __init__(self, landing: Landing, book: ChunkBook, *, chunk_bytes: int, block_bytes: int) -> None:
        self._landing = landing
        self._chunk_bytes = chunk_bytes
        self._block_bytes = block_bytes
        self._missing: list[int] = []
        self._views = [landing.view(partition) for partition in range(len(landing.extents))]

        if block_bytes < chunk_bytes:
            self._begin_blocks(book)

    async def enter(self, entry: ChunkEntry) -> None:
        return

    def arrived(self, entry: ChunkEntry, start: int, size_bytes: int) -> None:
        if not self._missing:
            return
        for block, share in self._blocks(start, size_bytes):
            self._missing[block] -= share
            if not self._missing[block]:
                self._landing.board.mark_done(block)

    def view(self, entry: ChunkEntry) -> memoryview:
        return self._views[entry.chunk.partition][entry.chunk.start : entry.end]

    def summed(self, entry: ChunkEntry) -> None:
        if not self._missing:
            self._landing.board.mark_done(entry.index)
            return
        for block, _ in self._blocks(entry.chunk.start, entry.chunk.length):
            self._landing.board.mark_done(block)

    def written(self, entry: ChunkEntry) -> None:
        return

    @property
    def dram_bytes(self) -> int:
        return self._landing.board.bytes_done

    def _begin_blocks(self, book: ChunkBook) -> None:
        """What nothing will come for is made zero now, and every block told what it waits for."""
        self._missing = [0] * self._landing.board.chunks
        for entry in book.entries:
            view = self.view(entry)
            for start, end in entry.gaps():
                view[start:end] = bytes(end - start)
            for piece in entry.pieces:
                for block, share in self._blocks(piece.start, piece.size_bytes):
                    self._missing[block] += share

    def _blocks(self, start: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Of one partition: the blocks that a range touches, and how much of each."""
        end = start + size_bytes
        for block in range(start // self._block_bytes, -(-end // self._block_bytes)):
            low, high = block * self._block_bytes, (block + 1) * self._block_bytes
            yield block, min(end, high) - max(start, low)


class RingRoom(Room):
    """A few buffers of its own, when the pool has no room: the SSD then holds the network back."""

    def __init__(self, *, chunk_bytes: int, buffers: int = RING_CHUNKS) -> None:
        # Anonymous memory begins on a page, as a direct write needs it.
        self._free = [memoryview(mmap.mmap(-1, chunk_bytes)) for _ in range(buffers)]
        self._taken: dict[int, memoryview] = {}
        self._freed = asyncio.Event()

    async def enter(self, entry: ChunkEntry) -> None:
        # Requests come in the order of chunks: those that hold buffers are all asked for, and will be done.
        while entry.index not in self._taken:
            if self._free:
                self._taken[entry.index] = self._free.pop()
                return
            self._freed.clear()
            await self._freed.wait()

    def view(self, entry: ChunkEntry) -> memoryview:
        return self._taken[entry.index][: entry.chunk.length]

    def arrived(self, entry: ChunkEntry, start: int, size_bytes: int) -> None:
        return

    def summed(self, entry: ChunkEntry) -> None:
        return

    def written(self, entry: ChunkEntry) -> None:
        self._free.append(self._taken.pop(entry.index))
        self._freed.set()

    @property
    def dram_bytes(self) -> int:
        return 0

"""Where chunks stand between the network and the SSD: in the DRAM pool, or in a ring of buffers."""

from __future__ import annotations

import asyncio
import mmap
from abc import ABC, abstractmethod

from gpu_worker.store.landing import Landing
from gpu_worker.store.streaming.chunk_book import ChunkEntry

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
    """The extents of a landing: readers see every chunk as soon as it is summed."""

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        self._views = [landing.view(partition) for partition in range(len(landing.extents))]

    async def enter(self, entry: ChunkEntry) -> None:
        return

    def view(self, entry: ChunkEntry) -> memoryview:
        return self._views[entry.chunk.partition][entry.chunk.start : entry.end]

    def summed(self, entry: ChunkEntry) -> None:
        self._landing.board.mark_done(entry.index)

    def written(self, entry: ChunkEntry) -> None:
        return

    @property
    def dram_bytes(self) -> int:
        return self._landing.board.bytes_done


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

    def summed(self, entry: ChunkEntry) -> None:
        return

    def written(self, entry: ChunkEntry) -> None:
        self._free.append(self._taken.pop(entry.index))
        self._freed.set()

    @property
    def dram_bytes(self) -> int:
        return 0

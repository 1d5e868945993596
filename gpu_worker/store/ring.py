"""A checkpoint that is larger than the pool goes through a ring of chunks into its reader's own memory.

    ring in the arena, two windows         | chunk 0 1 2 3 | chunk 4 5 6 7 |      then 8 9 10 11 | …
                                             the reader copies   the device reads

Chunk i lies in slot i modulo `slots`. A window is read anew only when the reader has said that it took every
chunk of it: a reader that is slow slows the device down, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from firstlight.domain.errors import EngineGone
from gpu_worker.store.extents import Extent
from gpu_worker.store.memory import Readable
from native_loader import ProgressBoard

WINDOWS = 2
# A reader that takes nothing for so long hangs, and holds up every other load.
LEASE_S = 30.0
MOST_CHUNKS_PER_WINDOW = 4


def slots_of(chunk_lengths: Sequence[int], *, capacity_bytes: int) -> int:
    """How many chunks the ring holds: a quarter of the pool at most, two chunks at least."""
    longest = max(chunk_lengths)
    per_window = max(1, min(MOST_CHUNKS_PER_WINDOW, capacity_bytes // (4 * WINDOWS * longest)))
    return WINDOWS * per_window


class Ring:
    """One reader's stream of one checkpoint. `board` tells which chunks are in their slots, or were."""

    def __init__(self, readable: Readable, extent: Extent, *, slots: int) -> None:
        self.extent = extent
        self.slots = slots
        self.slot_bytes = max(readable.chunk_lengths)
        self.board = ProgressBoard(readable.chunk_lengths)
        self._readable = readable
        self._taken = 0
        self._has_left = False
        self._changed = asyncio.Event()

    def take(self, chunks: int) -> None:
        """The reader has copied the first `chunks` of all."""
        self._taken = max(self._taken, chunks)
        self._changed.set()

    def leave(self) -> None:
        """The reader is gone: nothing is read for it any more."""
        self._has_left = True
        self._changed.set()

    async def run(self) -> None:
        """Until the reader has taken every chunk.

        Raises: EngineGone if it leaves or takes nothing for LEASE_S, ChecksumMismatch, ReadFailed.
        """
        chunks, per_window = self.board.chunks, self.slots // WINDOWS
        try:
            for first in range(0, chunks, per_window):
                await self._until_taken(first - self.slots + per_window)
                window = range(first, min(first + per_window, chunks))
                await self._readable.begin_chunks(first, [self._slot(index) for index in window]).wait()
                for index in window:
                    self.board.mark_done(index)
            await self._until_taken(chunks)
        except BaseException:
            self.board.fail()
            raise

    def _slot(self, index: int) -> int:
        return self.extent.offset + index % self.slots * self.slot_bytes

    async def _until_taken(self, chunks: int) -> None:
        while self._taken < chunks and not self._has_left:
            self._changed.clear()
            try:
                async with asyncio.timeout(LEASE_S):
                    await self._changed.wait()
            except TimeoutError as failure:
                raise EngineGone(f"the reader of a stream took nothing for {LEASE_S:.0f} s") from failure
        if self._taken < chunks:
            raise EngineGone("the reader of a stream went away")

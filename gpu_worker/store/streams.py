"""Streams of checkpoints that are larger than the pool: a ring and a reader each, in the loads' own turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count

from firstlight.domain.errors import CheckpointError
from gpu_worker.store.memory import Memory
from gpu_worker.store.pool import Pool
from gpu_worker.store.ring import Ring, slots_of
from gpu_worker.store.ssd_cache import CachedCheckpoint, SsdCache

log = logging.getLogger("store.stream")


@dataclass(frozen=True, slots=True)
class Stream:
    """A ring that is being filled, and the task that fills it."""

    cached: CachedCheckpoint
    ring: Ring
    task: asyncio.Task[None]


class Streams:
    """`turn` is the device's; `condemn` takes a checkpoint whose bytes are wrong out of use."""

    def __init__(
        self,
        *,
        cache: SsdCache,
        pool: Pool,
        memory: Memory,
        turn: Callable[[], AbstractAsyncContextManager[object]],
        condemn: Callable[[CachedCheckpoint, CheckpointError], object],
    ) -> None:
        self._cache = cache
        self._pool = pool
        self._memory = memory
        self._turn = turn
        self._condemn = condemn
        self._numbers = count(1)
        self._read: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def is_read(self, checkpoint_id: str) -> bool:
        """Whether its files are being streamed."""
        return checkpoint_id in self._read

    async def begin(self, checkpoint_id: str) -> Stream:
        """Wait for the device's turn and begin. Raises: UnknownCheckpoint, PoolFull, CheckpointError."""
        cached = self._cache.get(checkpoint_id)
        begun: asyncio.Future[Ring] = asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(self._run(cached, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return Stream(cached, await asyncio.shield(begun), task)
        except BaseException:  # whoever asked may have gone while it waited for its turn
            task.cancel()
            raise

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, cached: CachedCheckpoint, begun: asyncio.Future[Ring]) -> None:
        try:
            async with self._turn(), self._reading(cached.checkpoint_id), self._ring(cached) as ring:
                begun.set_result(ring)
                await ring.run()
            log.info("streamed checkpoint=%s bytes=%d", cached.checkpoint_id, ring.board.bytes_total)
        except BaseException as failure:  # cancellation too: whoever waits for the ring must hear of it
            if isinstance(failure, CheckpointError):
                self._condemn(cached, failure)
            log.warning("stream failed checkpoint=%s: %s", cached.checkpoint_id, failure)
            if not begun.done():
                begun.set_exception(failure) if isinstance(failure, Exception) else begun.cancel()
            raise

    @asynccontextmanager
    async def _reading(self, checkpoint_id: str) -> AsyncIterator[None]:
        self._read.append(checkpoint_id)
        try:
            yield
        finally:
            self._read.remove(checkpoint_id)

    @asynccontextmanager
    async def _ring(self, cached: CachedCheckpoint) -> AsyncIterator[Ring]:
        readable = await self._memory.open(cached.directory)
        slots = slots_of(readable.chunk_lengths, capacity_bytes=self._pool.capacity_bytes)
        # A name that is no checkpoint's: the ring is room, and never anything that could be pinned.
        name = f"ring-{next(self._numbers)} of {cached.checkpoint_id}"
        (extent,) = self._pool.reserve(name, [slots * max(readable.chunk_lengths)], cost_s=0.0).extents
        try:
            yield Ring(readable, extent, slots=slots)
        finally:
            with suppress(KeyError):
                self._pool.abandon(name)

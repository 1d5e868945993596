"""Bring checkpoints from SSD into the DRAM pool, one at a time in the order asked; repeats join."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace

from firstlight.domain.errors import CheckpointError
from gpu_worker.store.memory import Memory, Transfer
from gpu_worker.store.pool import Pool
from gpu_worker.store.shared_work import SharedWork
from gpu_worker.store.ssd_cache import CachedCheckpoint, SsdCache

log = logging.getLogger("store.load")

PROGRESS_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """`moving_at_unix_s` is when its first byte began to move; 0 while it waits, and when it was in DRAM."""

    bytes_done: int = 0
    bytes_total: int
    queue_s: float = 0.0
    elapsed_s: float = 0.0
    from_tier: str = "ssd"
    is_done: bool = False
    moving_at_unix_s: float = 0.0


class Loads:
    """The one loader of this host. One transfer at a time: two would only share the device's bandwidth."""

    def __init__(self, *, cache: SsdCache, pool: Pool, memory: Memory, ssd_read_bytes_per_s: float) -> None:
        self._cache = cache
        self._pool = pool
        self._memory = memory
        self._bandwidth = ssd_read_bytes_per_s
        self._running: dict[str, SharedWork[LoadState]] = {}
        # asyncio.Lock wakes its waiters in the order they came: that is the queue.
        self._turn = asyncio.Lock()

    @property
    def queued_bytes(self) -> int:
        """Promised to loads that have not finished."""
        states = [work.progress for work in self._running.values()]
        return sum(state.bytes_total - state.bytes_done for state in states)

    def is_running(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._running

    def find(self, checkpoint_id: str) -> LoadState | None:
        work = self._running.get(checkpoint_id)
        return work.progress if work is not None else None

    def resident(self, checkpoint_id: str) -> LoadState | None:
        """The finished state of what is in DRAM already, or None."""
        if not self._pool.is_resident(checkpoint_id):
            return None
        self._pool.touch(checkpoint_id)
        self._cache.touch(checkpoint_id)
        size_bytes = self._cache.get(checkpoint_id).size_bytes
        return LoadState(bytes_done=size_bytes, bytes_total=size_bytes, from_tier="dram", is_done=True)

    def order(self, checkpoint_id: str) -> SharedWork[LoadState]:
        """Start or join a load of what is not resident. Raises: UnknownCheckpoint when SSD lacks it."""
        if (running := self._running.get(checkpoint_id)) is not None:
            return running
        cached = self._cache.get(checkpoint_id)
        work = SharedWork(LoadState(bytes_total=cached.size_bytes))
        self._running[checkpoint_id] = work
        work.start(self._run(cached, work))
        return work

    async def close(self) -> None:
        tasks = [work.task for work in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, cached: CachedCheckpoint, work: SharedWork[LoadState]) -> None:
        asked = time.monotonic()
        try:
            async with self._turn:
                work.tell(replace(work.progress, queue_s=time.monotonic() - asked))
                await self._load(cached, work)
        except CheckpointError as failure:
            self._quarantine(cached, failure)
            raise
        finally:
            del self._running[cached.checkpoint_id]

    async def _load(self, cached: CachedCheckpoint, work: SharedWork[LoadState]) -> None:
        name = cached.checkpoint_id
        readable = await self._memory.open(cached.directory)
        sizes = readable.partition_sizes
        room = self._pool.reserve(name, sizes, cost_s=sum(sizes) / self._bandwidth)
        for evicted in room.evicted:
            log.info("evicted from dram checkpoint=%s for=%s", evicted, name)
        try:
            transfer = readable.begin(room.extents)
            work.tell(replace(work.progress, bytes_total=sum(sizes), moving_at_unix_s=time.time()))
            await self._follow(transfer, work)
        except BaseException:
            # The transfer has ended by now (its `wait` promises so): the room can go to another.
            self._pool.abandon(name)
            raise
        self._pool.commit(name)
        with contextlib.suppress(OSError):
            self._cache.touch(name)
        state = work.progress
        log.info("loaded checkpoint=%s bytes=%d in_s=%.3f", name, state.bytes_total, state.elapsed_s)

    async def _follow(self, transfer: Transfer, work: SharedWork[LoadState]) -> None:
        began = time.monotonic()
        waiting = asyncio.get_running_loop().create_task(transfer.wait())
        try:
            while not (await asyncio.wait([waiting], timeout=PROGRESS_INTERVAL_S))[0]:
                elapsed_s = time.monotonic() - began
                work.tell(replace(work.progress, bytes_done=transfer.bytes_done, elapsed_s=elapsed_s))
        except asyncio.CancelledError:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            raise
        waiting.result()
        total = work.progress.bytes_total
        elapsed_s = time.monotonic() - began
        work.tell(replace(work.progress, bytes_done=total, elapsed_s=elapsed_s, is_done=True))

    def _quarantine(self, cached: CachedCheckpoint, failure: CheckpointError) -> None:
        """Take a checkpoint whose bytes are wrong out of use; the next download brings it anew."""
        log.error("bad checkpoint=%s code=%s: %s", cached.checkpoint_id, failure.code, failure.message)
        if self._cache.find(cached.checkpoint_id) is not None:
            self._cache.quarantine(cached.checkpoint_id)
        failure.message = f"{failure.message}; it is quarantined on this host and must be downloaded again"
        failure.args = (failure.message,)

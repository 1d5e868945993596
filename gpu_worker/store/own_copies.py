"""Looks again at what this store holds when another store says that it got wrong bytes of it.

What is wrong is taken out of use: a copy on SSD is quarantined, one in DRAM goes to nobody any more. Who
complains is not believed, only heard: a link or a peer's memory flips bits as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import count

from firstlight.domain.errors import CheckpointError, FirstlightError, ReadFailed
from gpu_worker.store.extents import Extent
from gpu_worker.store.pool import Pool
from gpu_worker.store.ssd_cache import CachedCheckpoint, SsdCache
from native_loader import crc32c, open_checkpoint
from native_loader.manifest import Manifest
from native_loader.verification import verify

log = logging.getLogger("store.verify")

# So long a copy that was found right is not looked at again: complaints must not keep a disk busy.
TRUSTED_S = 60.0
THREADS = 1


class OwnCopies:
    """Belongs to the store's event loop."""

    def __init__(
        self,
        *,
        cache: SsdCache,
        pool: Pool,
        view: Callable[[Extent], memoryview],
        condemn: Callable[[CachedCheckpoint, FirstlightError], None],
        trusted_s: float = TRUSTED_S,
    ) -> None:
        """`condemn` takes a copy on SSD out of use."""
        self._cache = cache
        self._pool = pool
        self._view = view
        self._condemn = condemn
        self._trusted_s = trusted_s
        self._running: dict[str, asyncio.Task[None]] = {}
        self._found_right_s: dict[str, float] = {}
        self._names = count(1)

    def doubt(self, checkpoint_id: str) -> None:
        """Begin to look, unless that is being done or was done just now. Raises: UnknownCheckpoint."""
        cached = self._cache.get(checkpoint_id)
        looked_s = self._found_right_s.get(checkpoint_id)
        if checkpoint_id in self._running:
            return
        if looked_s is not None and time.monotonic() - looked_s < self._trusted_s:
            log.info("checkpoint=%s is doubted, and was found right just now", checkpoint_id)
            return
        log.warning("checkpoint=%s is doubted by another store: its copies are verified", checkpoint_id)
        task = asyncio.get_running_loop().create_task(self._look(cached))
        self._running[checkpoint_id] = task
        task.add_done_callback(lambda _: self._running.pop(checkpoint_id, None))

    async def close(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, cached: CachedCheckpoint) -> None:
        name = cached.checkpoint_id
        # Memory first: its checksums stand in a manifest on the SSD that may be about to go.
        dram_is_right = await self._dram_is_right(cached)
        if not dram_is_right:
            readers = self._pool.condemn(name) if self._pool.is_resident(name) else 0
            log.error("checkpoint=%s is wrong in DRAM: given to nobody any more, readers=%d", name, readers)
        try:
            await asyncio.to_thread(verify, cached.directory, threads=THREADS)
        except (CheckpointError, ReadFailed) as failure:
            # Not if it went, or was fetched anew, meanwhile.
            now = self._cache.find(name)
            if now is not None and now.manifest_digest == cached.manifest_digest:
                self._condemn(now, failure)
            return
        if dram_is_right:
            self._found_right_s[name] = time.monotonic()
            log.info("checkpoint=%s is as its checksums have it", name)

    async def _dram_is_right(self, cached: CachedCheckpoint) -> bool:
        name, reader = cached.checkpoint_id, f"verify-{next(self._names)}"
        if not self._pool.is_resident(name):
            return True
        extents = self._pool.pin(name, reader)
        try:
            manifest = (await asyncio.to_thread(open_checkpoint, cached.directory)).manifest
            views = [self._view(extent) for extent in extents]
            return await asyncio.to_thread(_is_right, views, manifest)
        except FirstlightError:
            return True  # without its manifest nothing can be said of it here
        finally:
            self._pool.unpin(name, reader)


def _is_right(views: list[memoryview], manifest: Manifest) -> bool:
    for view, partition in zip(views, manifest.partitions, strict=True):
        for index, expected in enumerate(partition.chunk_crc32c):
            start = index * manifest.chunk_bytes
            if crc32c(view[start : min(start + manifest.chunk_bytes, partition.size_bytes)]) != expected:
                return False
    return True

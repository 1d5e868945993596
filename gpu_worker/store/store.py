"""The parts of one store, put together: who may be evicted is decided here, where both tiers are known."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from threading import Thread, get_native_id

from firstlight.domain.errors import FirstlightError
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.downloads import Downloads
from gpu_worker.store.handover import Handover
from gpu_worker.store.loads import Loads
from gpu_worker.store.memory import Memory
from gpu_worker.store.pool import Pool
from gpu_worker.store.reach import Reach
from gpu_worker.store.ssd_cache import SsdCache
from gpu_worker.store.streaming.planner import Planner

log = logging.getLogger("store")

PREFAULT_NICENESS = 10


class Store:
    """Owns cache, pool, loads, downloads and the handover. Belongs to one event loop."""

    def __init__(self, *, config: StoreConfig, memory: Memory, ssd_read_bytes_per_s: float) -> None:
        self.memory = memory
        self.ssd_read_bytes_per_s = ssd_read_bytes_per_s
        self.pool = Pool(capacity_bytes=memory.size_bytes)
        self.cache = SsdCache(
            root=config.ssd_root,
            capacity_bytes=config.ssd_capacity_bytes,
            may_evict=self.may_evict,
            on_evict=self._leave_dram,
        )
        self.loads = Loads(
            cache=self.cache, pool=self.pool, memory=memory, ssd_read_bytes_per_s=ssd_read_bytes_per_s
        )
        self.planner = Planner()
        self.downloads = Downloads(
            cache=self.cache,
            fetch_parallelism=config.fetch_parallelism,
            planner=self.planner,
            loads=self.loads,
        )
        self.reach = Reach(cache=self.cache, pool=self.pool, loads=self.loads, downloads=self.downloads)
        self._arena_fd = memory.read_only_fd()
        self._handover = Handover(
            pool=self.pool,
            cache=self.cache,
            reach=self.reach,
            arena_fd=self._arena_fd,
            arena_bytes=memory.size_bytes,
            kind=memory.kind,
        )

    def may_evict(self, checkpoint_id: str) -> bool:
        """Neither on its way to DRAM nor read there: its files are what a reader of it looks at too."""
        if self.loads.is_running(checkpoint_id) or self.pool.is_loading(checkpoint_id):
            return False
        return self.pool.pins(checkpoint_id) == 0

    def start(self, *, socket_path: Path, prefault: bool) -> None:
        self._handover.start(socket_path)
        if prefault:
            # A daemon, not a pool's thread: a stop must not wait until a large arena has been touched.
            Thread(target=self._make_resident, name="prefault", daemon=True).start()

    async def close(self) -> None:
        await self._handover.close()
        await self.loads.close()
        await self.downloads.close()
        self.cache.close()
        os.close(self._arena_fd)

    def _leave_dram(self, checkpoint_id: str) -> None:
        if self.pool.is_resident(checkpoint_id):
            self.pool.evict(checkpoint_id)

    def _make_resident(self) -> None:
        """Touch the arena once, behind the first loads, so that later ones never pay for fresh pages."""
        began = time.monotonic()
        # Linux nices threads one by one: this one touches gigabytes while others are starting to serve.
        os.setpriority(os.PRIO_PROCESS, get_native_id(), PREFAULT_NICENESS)
        try:
            self.memory.prefault()
        except FirstlightError as failure:
            # Loads still make their own pages resident, and answer for it if they cannot.
            log.error("the arena cannot be made resident: %s", failure.message)
            return
        took_s = time.monotonic() - began
        log.info(
            "arena resident bytes=%d kind=%s in_s=%.2f", self.memory.size_bytes, self.memory.kind, took_s
        )

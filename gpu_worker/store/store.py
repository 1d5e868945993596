"""The parts of one store, put together: who may be evicted is decided here, where both tiers are known."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread, get_native_id

from firstlight.domain.errors import FirstlightError, InvalidSettings
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.downloads import Downloads
from gpu_worker.store.gpu_handover import GpuHandover
from gpu_worker.store.handover import Handover
from gpu_worker.store.loads import Loads
from gpu_worker.store.memory import Memory
from gpu_worker.store.own_copies import OwnCopies
from gpu_worker.store.peer_server import PeerServer
from gpu_worker.store.peer_shelf import PeerShelf, read_secret
from gpu_worker.store.pool import Pool
from gpu_worker.store.probe import Figures, Prober
from gpu_worker.store.reach import Reach
from gpu_worker.store.sources.peer import PeerClient
from gpu_worker.store.ssd_cache import SsdCache
from gpu_worker.store.streaming.planner import IDLE_S, Planner

log = logging.getLogger("store")

PREFAULT_NICENESS = 10


class Store:
    """Owns cache, pool, loads, downloads and the handover. Belongs to one event loop."""

    def __init__(
        self,
        *,
        config: StoreConfig,
        memory: Memory,
        ssd_read_bytes_per_s: float,
        gpu: GpuHandover | None = None,
        prober: Prober | None = None,
    ) -> None:
        self.memory = memory
        self.gpu = gpu if gpu is not None else GpuHandover(devices=None, copies=None)
        self._ssd_read_bytes_per_s = ssd_read_bytes_per_s
        self._prober = prober
        self._probing: asyncio.Task[None] | None = None
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
        self.loads.on_idle = self._check_book
        self._forget_needs: asyncio.TimerHandle | None = None
        self._planner_warm_after_s = config.planner_warm_after_s
        self.planner = Planner(
            forked_at=config.planner_socket_path,
            idle_s=IDLE_S if config.planner_warm_after_s is None else None,
        )
        secret = read_secret(config.peer_secret_file)
        self.peers = PeerClient(secret=secret)
        self.own_copies = OwnCopies(
            cache=self.cache, pool=self.pool, view=memory.view, condemn=self.loads.condemn
        )
        self.peer_endpoint = ""
        self._peer_server = _peer_server(config, self, secret)
        self.downloads = Downloads(
            cache=self.cache,
            fetch_parallelism=config.fetch_parallelism,
            planner=self.planner,
            loads=self.loads,
            open_peer=self.peers.open,
        )
        self.reach = Reach(cache=self.cache, pool=self.pool, loads=self.loads, downloads=self.downloads)
        self._arena_fd = memory.read_only_fd()
        self._handover = Handover(
            pool=self.pool,
            cache=self.cache,
            streams=self.loads.streams,
            reach=self.reach,
            gpu=self.gpu,
            arena_fd=self._arena_fd,
            arena_bytes=memory.size_bytes,
            kind=memory.kind,
        )

    @property
    def figures(self) -> Figures:
        """What its devices can do, as far as it is known."""
        if self._prober is not None:
            return self._prober.figures
        return Figures(ssd_read_bytes_per_s=self._ssd_read_bytes_per_s)

    def _is_quiet(self) -> bool:
        return self.downloads.is_idle and self.loads.is_idle

    def may_evict(self, checkpoint_id: str) -> bool:
        """Neither on its way to DRAM nor read there: its files are what a reader of it looks at too."""
        if self.loads.is_running(checkpoint_id) or self.pool.is_loading(checkpoint_id):
            return False
        if self.loads.streams.is_read(checkpoint_id):
            return False
        return self.pool.pins(checkpoint_id) == 0

    def expect(self, needs: Mapping[str, float], *, good_for_s: float) -> None:
        """Weigh evictions by how likely each checkpoint is to be wanted, until that word is too old."""
        if self._forget_needs is not None:
            self._forget_needs.cancel()
        self.pool.expect(needs)
        self.cache.expect(needs)
        self._forget_needs = asyncio.get_running_loop().call_later(good_for_s, self._forget_all_needs)

    def _forget_all_needs(self) -> None:
        self.pool.expect({})
        self.cache.expect({})

    def start(self, *, socket_path: Path, prefault: bool) -> None:
        self._handover.start(socket_path)
        if self._peer_server is not None:
            self.peer_endpoint = self._peer_server.start()
        self.gpu.start()
        if self._planner_warm_after_s is not None:
            self.planner.warm_later(self._planner_warm_after_s)
        if self._prober is not None:
            self._probing = asyncio.create_task(self._prober.run(is_quiet=self._is_quiet, gpu=self.gpu))
        # A daemon, not a pool's thread: a stop must not wait until a large arena has been touched.
        Thread(target=self._make_ready, args=(prefault,), name="prefault", daemon=True).start()

    async def close(self) -> None:
        if self._forget_needs is not None:
            self._forget_needs.cancel()
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._peer_server is not None:
            await self._peer_server.close()
        await self.own_copies.close()
        await self._handover.close()
        await self.gpu.close()
        # Before the loads: no thread of a download may write to a room that has been given back.
        await self.downloads.close()
        await self.loads.close()
        await asyncio.to_thread(self.peers.close)
        self.cache.close()
        os.close(self._arena_fd)

    def _check_book(self) -> None:
        """When no load runs. A book that is wrong would hand one checkpoint's memory to another."""
        try:
            self.pool.check_integrity()
        except AssertionError:
            log.critical("the book of the pool is wrong: this store ends, and its successor begins anew")
            os._exit(70)

    def _leave_dram(self, checkpoint_id: str) -> None:
        if self.pool.is_resident(checkpoint_id):
            self.pool.evict(checkpoint_id)

    def _make_ready(self, prefault: bool) -> None:
        if prefault:
            self._make_resident()
        # Behind it: pages that are there are pinned in a third of the time.
        self.gpu.pin()

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


def _peer_server(config: StoreConfig, store: Store, secret: str | None) -> PeerServer | None:
    """None when it would be open to a network without a secret: this store then only takes."""
    shelf = PeerShelf(cache=store.cache, pool=store.pool, view=store.memory.view)
    try:
        return PeerServer(
            shelf,
            on_doubt=store.own_copies.doubt,
            bind_address=config.bind_address,
            port=config.peer_port,
            secret=secret,
        )
    except InvalidSettings as refusal:
        log.warning("no peers are served: %s (%s)", refusal.message, refusal.fields.get("setting"))
        return None

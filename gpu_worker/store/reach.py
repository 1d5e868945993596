"""How a reader reaches a checkpoint that this host has, or is about to have."""

from __future__ import annotations

import asyncio
from typing import Protocol

from firstlight.domain.errors import UnknownCheckpoint
from gpu_worker.store.landing import Arrival
from gpu_worker.store.load_state import LoadState
from gpu_worker.store.loads import Loads
from gpu_worker.store.pool import Pool
from gpu_worker.store.shared_work import SharedWork
from gpu_worker.store.ssd_cache import SsdCache


class UnderWay(Protocol):
    """The downloads of a store, as far as this file cares."""

    def task_of(self, checkpoint_id: str) -> asyncio.Task[None] | None: ...


class Reach:
    """From an id to bytes that can be read or followed, whichever tier they are in."""

    def __init__(self, *, cache: SsdCache, pool: Pool, loads: Loads, downloads: UnderWay) -> None:
        self._cache = cache
        self._pool = pool
        self._loads = loads
        self._downloads = downloads

    async def reach(self, checkpoint_id: str) -> Arrival | None:
        """None when it is resident, else its arrival, once readers can follow it. Raises: as `work`."""
        if await self.work(checkpoint_id) is None:
            return None
        return await self._loads.arrival(checkpoint_id)

    async def work(self, checkpoint_id: str) -> SharedWork[LoadState] | None:
        """What brings it into DRAM, begun if need be; None when it is there.

        Waits for a download to land or to end. Raises: UnknownCheckpoint, and what ended the download.
        """
        while not self._pool.is_resident(checkpoint_id):
            if self._loads.is_running(checkpoint_id) or self._cache.find(checkpoint_id) is not None:
                return self._loads.order(checkpoint_id)
            if (download := self._downloads.task_of(checkpoint_id)) is None:
                raise UnknownCheckpoint(
                    f"this host does not hold {checkpoint_id}", checkpoint_id=checkpoint_id
                )
            await self._landed_or_ended(checkpoint_id, download)
        return None

    def landed(self, checkpoint_id: str) -> Arrival | None:
        """Of what is resident and may not be on SSD yet."""
        return self._loads.landed(checkpoint_id)

    async def _landed_or_ended(self, checkpoint_id: str, download: asyncio.Task[None]) -> None:
        begun = asyncio.ensure_future(self._loads.until_begun(checkpoint_id))
        try:
            await asyncio.wait({begun, download}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        if not begun.done() and not download.cancelled() and (failure := download.exception()) is not None:
            raise failure

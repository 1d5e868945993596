"""How a reader reaches a checkpoint that this host has, or is about to have."""

from __future__ import annotations

import asyncio
from typing import Protocol

from firstlight.domain.errors import UnknownCheckpoint
from gpu_worker.store.landing import Arrival
from gpu_worker.store.loads import Loads
from gpu_worker.store.pool import Pool
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
        """None when it is resident, else its arrival; what is on SSD only is set in motion.

        Waits for a load's turn, and for a download to land or to end.
        Raises: UnknownCheckpoint, PoolFull, and what ended a load or download.
        """
        while not self._pool.is_resident(checkpoint_id):
            if self._loads.is_running(checkpoint_id):
                return await self._loads.arrival(checkpoint_id)
            if self._cache.find(checkpoint_id) is not None:
                self._loads.order(checkpoint_id)
            elif (download := self._downloads.task_of(checkpoint_id)) is not None:
                await self._landed_or_ended(checkpoint_id, download)
            else:
                raise UnknownCheckpoint(
                    f"this host does not hold {checkpoint_id}", checkpoint_id=checkpoint_id
                )
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

"""The downloads under way: one for each checkpoint, joined by repeats, stopped when nobody wants them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from firstlight.domain.errors import Cancelled, Conflict
from gpu_worker.store.conversion import CONVERTER
from gpu_worker.store.download import Download
from gpu_worker.store.download_order import DownloadOrder, DownloadState, done
from gpu_worker.store.download_parts import DownloadParts, PeerOpener
from gpu_worker.store.loads import Loads
from gpu_worker.store.shared_work import SharedWork
from gpu_worker.store.sources.redaction import redacted
from gpu_worker.store.ssd_cache import CachedCheckpoint, SsdCache
from gpu_worker.store.streaming.planner import Planner

log = logging.getLogger("store.download")

# Longer than a host agent needs to come back and ask again.
UNWANTED_S = 60.0


class Downloads:
    """The downloads under way. Repeats join; a caller that goes away does not stop one.

    One that nobody has waited for in `unwanted_s` stops at a chunk (its model was deleted, a hint came to
    nothing); what it fetched stays for the next.
    """

    def __init__(
        self,
        *,
        cache: SsdCache,
        fetch_parallelism: int,
        converter: Sequence[str] = CONVERTER,
        planner: Planner | None = None,
        loads: Loads | None = None,
        open_peer: PeerOpener | None = None,
        unwanted_s: float = UNWANTED_S,
    ) -> None:
        self._cache = cache
        self._parts = DownloadParts(
            cache=cache,
            parallelism=fetch_parallelism,
            converter=converter,
            one_conversion=asyncio.Lock(),
            planner=planner,
            loads=loads,
            open_peer=open_peer,
        )
        self._unwanted_s = unwanted_s
        self._running: dict[str, tuple[DownloadOrder, SharedWork[DownloadState]]] = {}

    def is_running(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._running

    @property
    def is_idle(self) -> bool:
        return not self._running

    def task_of(self, checkpoint_id: str) -> asyncio.Task[None] | None:
        """Of the download under way, to wait for its end."""
        running = self._running.get(checkpoint_id)
        return running[1].task if running is not None else None

    def order(self, order: DownloadOrder) -> SharedWork[DownloadState]:
        """Start or join. Raises: Conflict when the same id is under way from elsewhere."""
        if (running := self._running.get(order.checkpoint_id)) is not None:
            if (running[0].source, running[0].dtype) != (order.source, order.dtype):
                elsewhere = redacted(running[0].source)
                raise Conflict(f"{order.checkpoint_id} is being downloaded from {elsewhere}")
            return running[1]
        work = SharedWork(DownloadState(began_monotonic_s=time.monotonic()))
        self._running[order.checkpoint_id] = order, work
        work.start(self._run(order, work))
        return work

    async def end(self) -> None:
        """Stop every download where it is."""
        tasks = [work.task for _, work in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.end()
        if self._parts.planner is not None:
            await self._parts.planner.close()

    async def _run(self, order: DownloadOrder, work: SharedWork[DownloadState]) -> None:
        try:
            present = self._present(order)
            if present is not None:
                work.tell(done(work.progress, present, was_present=True))
                return
            await self._while_wanted(order, work)
        finally:
            del self._running[order.checkpoint_id]

    async def _while_wanted(self, order: DownloadOrder, work: SharedWork[DownloadState]) -> None:
        """Raises: Cancelled when it was stopped because nobody waits; what the download raises."""
        download = asyncio.create_task(Download(self._parts, order, work).run())
        try:
            while not download.done():
                await asyncio.wait([download], timeout=max(0.01, self._unwanted_s - work.unwatched_s))
                if not download.done() and work.unwatched_s >= self._unwanted_s:
                    log.warning("download stopped, nobody waits for it checkpoint=%s", order.checkpoint_id)
                    raise Cancelled(f"nobody waits for the download of {order.checkpoint_id} any more")
        finally:
            # It must have stopped before another may begin: both would write the same files.
            download.cancel()
            await asyncio.gather(download, return_exceptions=True)
        await download

    def _present(self, order: DownloadOrder) -> CachedCheckpoint | None:
        """What is on SSD already, unless it holds other bytes than are expected: then it goes."""
        cached = self._cache.find(order.checkpoint_id)
        if cached is not None and order.expected_digest not in ("", cached.manifest_digest):
            log.warning("digest differs, fetching anew checkpoint=%s", order.checkpoint_id)
            self._cache.remove(order.checkpoint_id)
            return None
        return cached

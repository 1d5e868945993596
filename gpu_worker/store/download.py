"""Make one checkpoint present on SSD: streamed from a peer or its source, or fetched and converted whole."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from firstlight.domain.errors import (
    CheckpointError,
    CheckpointMismatch,
    ChecksumMismatch,
    DiskFull,
    ManifestInvalid,
    SourceCorrupt,
    SourceError,
    SourceUnsupported,
)
from gpu_worker.store.download_order import DownloadOrder, DownloadState, done
from gpu_worker.store.download_parts import DownloadParts
from gpu_worker.store.shared_work import SharedWork
from gpu_worker.store.sources import Source, SourceDescription, open_source
from gpu_worker.store.ssd_cache import CachedCheckpoint
from gpu_worker.store.staged_download import StagedDownload
from gpu_worker.store.streaming.planner import Planner
from gpu_worker.store.streaming.preparation import ConvertWhole
from gpu_worker.store.streaming.session import Session, StreamedBytes

log = logging.getLogger("store.download")

# These bytes will be no better the next time; after any other end a download goes on where it was.
# And a full disk is not made emptier by what stays.
_HOPELESS = (SourceCorrupt, SourceUnsupported, CheckpointError, DiskFull)


class Download:
    """One download, from its first byte to its place in the cache."""

    def __init__(self, parts: DownloadParts, order: DownloadOrder, work: SharedWork[DownloadState]) -> None:
        self._parts = parts
        self._cache = parts.cache
        self._order = order
        self._work = work

    async def run(self) -> None:
        """From the peers, best first; then from the source. Raises what the last of them raised."""
        for endpoint in self._order.peer_endpoints if self._parts.open_peer is not None else ():
            try:
                await self._from_peer(endpoint)
                return
            except (SourceError, CheckpointError) as failure:
                log.warning("peer=%s checkpoint=%s: %s", endpoint, self._name, failure.message)
        if (planner := self._parts.planner) is not None:
            # While the source is asked what it holds, the planner starts.
            planner.warm()
        source = open_source(self._order.source)
        description = await self._described(source)
        if planner is None:
            await self._staged(source, description)
            return
        try:
            await self._streamed(source, description, planner, tier="remote")
        except ConvertWhole as reason:
            log.info("checkpoint=%s is converted whole: %s", self._name, reason)
            self._cache.drop_staging(self._name)
            await self._staged(source, description)

    @property
    def _name(self) -> str:
        return self._order.checkpoint_id

    async def _from_peer(self, endpoint: str) -> None:
        assert self._parts.open_peer is not None and self._parts.planner is not None
        source = self._parts.open_peer(endpoint, self._name)
        try:
            description = await self._described(source)
            await self._streamed(source, description, self._parts.planner, tier="peer")
        except (ChecksumMismatch, ManifestInvalid, SourceCorrupt):
            await source.doubt()
            raise

    async def _described(self, source: Source) -> SourceDescription:
        description = await source.describe()
        self._tell(bytes_total=description.source_bytes, source_bytes=description.source_bytes)
        log.info(
            "download checkpoint=%s source=%s layout=%s bytes=%d",
            self._name,
            description.uri,
            description.layout,
            description.source_bytes,
        )
        return description

    async def _streamed(
        self, source: Source, description: SourceDescription, planner: Planner, *, tier: str
    ) -> None:
        began = time.monotonic()
        with self._cache.reserving(self._name) as reserve:
            session = Session(
                order=self._order,
                source=source,
                description=description,
                staging=self._cache.staging_dir(self._name),
                offered=self._cache.offered_dir(self._name),
                planner=planner,
                loads=self._parts.loads,
                tier=tier,
                parallelism=self._parts.parallelism,
                reserve=reserve,
                on_progress=self._progressed,
            )
            try:
                whole = await session.run()
            except SourceCorrupt as failure:
                self._keep_or_drop(failure, tier)
                raise SourceCorrupt(f"the source is damaged: {failure.message}") from failure
            except BaseException as failure:  # cancellation too: what is there is for the next one
                self._keep_or_drop(failure, tier)
                raise
            cached = self._published(whole)
        self._tell(came_from_peer=tier == "peer")
        self._work.tell(done(self._work.progress, cached, was_present=False))
        took_s = time.monotonic() - began
        log.info(
            "streamed checkpoint=%s from=%s bytes=%d in_s=%.3f", self._name, tier, cached.size_bytes, took_s
        )

    def _published(self, whole: Path) -> CachedCheckpoint:
        if self._cache.find(self._name) is not None:
            raise CheckpointMismatch(f"{self._name} came from elsewhere meanwhile")
        cached = self._cache.publish(self._name, whole=whole)
        self._cache.drop_staging(self._name)
        return cached

    def _keep_or_drop(self, failure: BaseException, tier: str) -> None:
        # Of a peer's bytes every chunk that stays was verified, and another peer has the rest.
        is_bad_there = tier == "peer" and isinstance(failure, ChecksumMismatch)
        if isinstance(failure, _HOPELESS) and not is_bad_there:
            self._cache.drop_staging(self._name)
        else:
            self._cache.keep_staging(self._name)

    async def _staged(self, source: Source, description: SourceDescription) -> None:
        staged = StagedDownload(self._parts, self._order, self._tell)
        cached = await staged.run(source, description)
        log.info("downloaded checkpoint=%s bytes=%d", self._name, cached.size_bytes)
        self._work.tell(done(self._work.progress, cached, was_present=False))
        if self._order.into_dram and self._parts.loads is not None:
            # Nobody watches: a failure is told to whoever asks for the load itself.
            self._parts.loads.order(self._name)

    def _progressed(self, progress: StreamedBytes) -> None:
        self._tell(
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            remote_bytes=progress.remote_bytes,
            dram_bytes=progress.dram_bytes,
            ssd_bytes=progress.ssd_bytes,
        )

    def _tell(self, **changes: int | str | bool) -> None:
        # replace() is checked at run time only: its keywords are not typed for a dict of changes.
        self._work.tell(replace(self._work.progress, **changes))  # type: ignore[arg-type]

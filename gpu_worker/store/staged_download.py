"""Fetch every file of a source, convert it whole, verify, publish: for what cannot be streamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firstlight.domain.errors import CheckpointMismatch, SourceCorrupt, SourceUnsupported
from gpu_worker.store.conversion import Converted, convert
from gpu_worker.store.download_order import DownloadOrder
from gpu_worker.store.download_parts import DownloadParts
from gpu_worker.store.fetch import fetch
from gpu_worker.store.sources import Layout, Source, SourceDescription
from gpu_worker.store.ssd_cache import CachedCheckpoint


class StagedDownload:
    """One of them. `tell` publishes changes of the download's state."""

    def __init__(self, parts: DownloadParts, order: DownloadOrder, tell: Callable[..., None]) -> None:
        self._parts = parts
        self._cache = parts.cache
        self._order = order
        self._tell = tell
        self._fetched_bytes = 0

    async def run(self, source: Source, description: SourceDescription) -> CachedCheckpoint:
        """Raises: every SourceError, CheckpointMismatch, DiskFull, StorageError."""
        name = self._order.checkpoint_id
        staged_bytes = 0 if source.local_path is not None else description.source_bytes
        with self._cache.reserving(name) as reserve:
            # What the conversion writes is known when it begins; until then, as much again as the source.
            reserve(staged_bytes + description.source_bytes)
            try:
                await self._bring(source, description, lambda size: reserve(staged_bytes + size))
            except BaseException as failure:  # cancellation too: half a checkpoint is worth nothing
                self._clear(failure)
                raise
            self._cache.drop_staging(name)
            # The room promised becomes the room taken: it must not count twice.
            reserve(0)
            return self._cache.publish(name)

    async def _bring(
        self, source: Source, description: SourceDescription, reserve: Callable[[int], None]
    ) -> None:
        """Fetch, convert and verify; what was written stands ready to be published."""
        path = await self._fetched(source, description)
        async with self._parts.one_conversion:
            converted = await self._converted(path, reserve)
        self._verify(converted)
        # To the byte: what the conversion foretold knew of tensors only.
        reserve(self._cache.written_bytes(self._order.checkpoint_id))

    def _clear(self, failure: BaseException) -> None:
        name = self._order.checkpoint_id
        self._cache.drop_writing(name)
        if isinstance(failure, SourceCorrupt | SourceUnsupported | CheckpointMismatch):
            # These bytes will be no better the next time; after any other end a fetch resumes.
            self._cache.drop_staging(name)
        else:
            self._cache.keep_staging(name)

    async def _fetched(self, source: Source, description: SourceDescription) -> Path:
        if source.local_path is not None:
            return _weights_path(source.local_path, description)
        directory = self._cache.staging_dir(self._order.checkpoint_id)
        await fetch(source, description, directory, parallelism=self._parts.parallelism, on_bytes=self._came)
        return _weights_path(directory, description)

    def _came(self, size_bytes: int) -> None:
        self._fetched_bytes += size_bytes
        self._tell(bytes_done=self._fetched_bytes, remote_bytes=self._fetched_bytes)

    async def _converted(self, path: Path, reserve: Callable[[int], None]) -> Converted:
        promised = 0

        def on_progress(bytes_done: int, bytes_total: int) -> None:
            nonlocal promised
            if bytes_total > promised:
                reserve(bytes_total)
                promised = bytes_total
            self._tell(phase="convert", bytes_done=bytes_done, bytes_total=bytes_total, ssd_bytes=bytes_done)

        self._tell(phase="convert", bytes_done=0)
        destination = self._cache.writing_dir(self._order.checkpoint_id)
        try:
            return await convert(
                path,
                destination,
                checkpoint_id=self._order.checkpoint_id,
                dtype=self._order.dtype,
                on_progress=on_progress,
                converter=self._parts.converter,
            )
        except BaseException:  # cancellation too: half a checkpoint is worth nothing
            self._cache.drop_writing(self._order.checkpoint_id)
            raise

    def _verify(self, converted: Converted) -> None:
        """Raises: CheckpointMismatch when these are not the bytes that the first conversion recorded."""
        self._tell(phase="verify")
        expected = self._order.expected_digest
        if expected not in ("", converted.manifest_digest):
            raise CheckpointMismatch(
                f"{self._order.checkpoint_id} converted from {self._order.source} has digest "
                f"{converted.manifest_digest[:16]}…, but the first conversion recorded {expected[:16]}…",
                checkpoint_id=self._order.checkpoint_id,
            )


def _weights_path(path: Path, description: SourceDescription) -> Path:
    """What the converter is given: the one GGUF file, or the folder."""
    if description.layout is Layout.GGUF and path.is_dir():
        return path / description.files[0].name
    return path

"""What this store lends to others: whole checkpoints, from the arena while they are there, else from SSD."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firstlight.domain.errors import FirstlightError, InvalidSettings, UnknownCheckpoint
from firstlight.domain.names import parse_checkpoint_id
from gpu_worker.store.extents import Extent
from gpu_worker.store.pool import Pool
from gpu_worker.store.ssd_cache import CachedCheckpoint, SsdCache
from native_loader.manifest_laws import is_plain_file_name


@dataclass(frozen=True, slots=True)
class Lent:
    """One file for the time of one answer: a view of the arena, or a descriptor that the borrower closes.

    `size_bytes` are the file's; `give_back` must be called once, on the event loop.
    """

    size_bytes: int
    manifest_digest: str
    give_back: Callable[[], None]
    view: memoryview | None = None
    fd: int = -1


class PeerShelf:
    """Belongs to the store's event loop."""

    def __init__(self, *, cache: SsdCache, pool: Pool, view: Callable[[Extent], memoryview]) -> None:
        self._cache = cache
        self._pool = pool
        self._view = view

    def listing(self, checkpoint_id: str) -> dict[str, object]:
        """Names and sizes of a checkpoint's files, as JSON goes. Raises: UnknownCheckpoint."""
        cached = self._known(checkpoint_id)
        files = sorted(cached.directory.iterdir())
        return {
            "manifest_digest": cached.manifest_digest,
            "tier": "dram" if self._pool.is_resident(checkpoint_id) else "ssd",
            "files": [
                {"name": path.name, "size_bytes": path.stat().st_size} for path in files if path.is_file()
            ],
        }

    def lend(self, checkpoint_id: str, name: str, borrower: str) -> Lent:
        """One file, held until it is given back: the arena's bytes are pinned, an open file cannot vanish.

        Raises: UnknownCheckpoint.
        """
        cached = self._known(checkpoint_id)
        index = _partition(name)
        if index is not None and self._pool.is_resident(checkpoint_id):
            return self._lend_from_arena(cached, index, borrower)
        return _lend_from_disk(cached, name)

    def _lend_from_arena(self, cached: CachedCheckpoint, index: int, borrower: str) -> Lent:
        extents = self._pool.pin(cached.checkpoint_id, borrower)
        if index >= len(extents):
            self._pool.unpin(cached.checkpoint_id, borrower)
            raise _no_file(cached)
        return Lent(
            size_bytes=extents[index].size_bytes,
            manifest_digest=cached.manifest_digest,
            view=self._view(extents[index]).toreadonly(),
            give_back=lambda: self._pool.unpin(cached.checkpoint_id, borrower),
        )

    def _known(self, checkpoint_id: str) -> CachedCheckpoint:
        try:
            parse_checkpoint_id(checkpoint_id)
        except FirstlightError:
            raise UnknownCheckpoint("that is no checkpoint's id") from None
        return self._cache.get(checkpoint_id)


def _lend_from_disk(cached: CachedCheckpoint, name: str) -> Lent:
    if not is_plain_file_name(name):
        raise _no_file(cached)
    try:
        fd = os.open(cached.directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        raise _no_file(cached) from None
    return Lent(
        size_bytes=os.fstat(fd).st_size,
        manifest_digest=cached.manifest_digest,
        fd=fd,
        give_back=lambda: None,
    )


def _partition(name: str) -> int | None:
    """The number in partition-N.bin."""
    number = name.removeprefix("partition-").removesuffix(".bin")
    return int(number) if name == f"partition-{number}.bin" and number.isdecimal() else None


def _no_file(cached: CachedCheckpoint) -> UnknownCheckpoint:
    return UnknownCheckpoint(f"{cached.checkpoint_id} has no such file", checkpoint_id=cached.checkpoint_id)


def read_secret(path: str | None) -> str | None:
    """The secret that stores share, from a file that only its owner reads; None when there is none.

    Raises: InvalidSettings.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text().strip() or None
    except OSError as failure:
        raise InvalidSettings(
            f"the secret of stores in {path} cannot be read: {failure.strerror}"
        ) from failure

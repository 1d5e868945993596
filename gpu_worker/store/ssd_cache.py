"""The SSD cache: whole checkpoints by id, accounted to the byte, evicted to make room, quarantined when bad.

    <root>/checkpoints/<checkpoint id>/   whole ones; a rename puts them here
    <root>/writing/<checkpoint id>/…      a conversion under way; dead at start, removed then
    <root>/staging/<checkpoint id>/       bytes as fetched; kept over a crash, so that a fetch resumes
    <root>/offered/<checkpoint id>/       what a reader opens of a checkpoint on its way; holes, dead at start
    <root>/quarantine/<checkpoint id>-<n> a checkpoint whose bytes failed their checksum

Knows nothing of DRAM: who may go is asked of `may_evict`, and who goes is told to `on_evict` first.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from firstlight.domain.errors import Conflict, DiskFull, FirstlightError, UnknownCheckpoint
from firstlight.domain.names import parse_checkpoint_id
from gpu_worker.store.disk import allocated_bytes, directory_bytes, hold, sync_directory
from gpu_worker.store.eviction import EvictionOrder

log = logging.getLogger("store.ssd")

MANIFEST = "manifest.json"
WHOLE = "whole"
DOWNLOAD_BYTES_PER_S = 100e6


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """One whole checkpoint on SSD."""

    checkpoint_id: str
    directory: Path
    size_bytes: int
    manifest_digest: str
    last_used_unix_s: float


class SsdCache:
    """Not thread-safe: one event loop owns it. Raises Conflict when another store owns `root`."""

    def __init__(
        self,
        *,
        root: Path,
        capacity_bytes: int,
        may_evict: Callable[[str], bool] = lambda _: True,
        on_evict: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._root = root
        self._may_evict = may_evict
        self._on_evict = on_evict
        self._entries: dict[str, CachedCheckpoint] = {}
        self._staged: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._order = EvictionOrder()
        for name in ("checkpoints", "writing", "staging", "offered", "quarantine"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._lock = hold(root / "lock", what=f"the SSD cache {root}")
        self._recover()

    def close(self) -> None:
        """Let another store have the directory."""
        os.close(self._lock)

    @property
    def checkpoints(self) -> tuple[CachedCheckpoint, ...]:
        return tuple(self._entries.values())

    @property
    def used_bytes(self) -> int:
        """Whole checkpoints, and for each download the larger of its promise and what it has staged."""
        downloads = set(self._reserved) | set(self._staged)
        promised = sum(max(self._reserved.get(one, 0), self._staged.get(one, 0)) for one in downloads)
        return promised + sum(entry.size_bytes for entry in self._entries.values())

    def find(self, checkpoint_id: str) -> CachedCheckpoint | None:
        return self._entries.get(checkpoint_id)

    def get(self, checkpoint_id: str) -> CachedCheckpoint:
        """Raises: UnknownCheckpoint."""
        if (entry := self._entries.get(checkpoint_id)) is None:
            raise UnknownCheckpoint(
                f"this host's SSD cache does not hold {checkpoint_id}", checkpoint_id=checkpoint_id
            )
        return entry

    def touch(self, checkpoint_id: str) -> None:
        """Note a use; the directory's mtime keeps it over a restart."""
        entry = self.get(checkpoint_id)
        now = time.time()
        os.utime(entry.directory, (now, now))
        self._entries[checkpoint_id] = replace(entry, last_used_unix_s=now)
        self._note_use(checkpoint_id, entry.size_bytes)

    def expect(self, needs: Mapping[str, float]) -> None:
        """How likely checkpoints are to be wanted soon, 0 to 1; of those not named nothing is known."""
        self._order.expect(needs)

    @contextmanager
    def reserving(self, checkpoint_id: str) -> Iterator[Callable[[int], None]]:
        """Hold room for a download; the yielded call sets how much, and may be called again.

        Raises: DiskFull from that call, when evicting all that may go would not make room.
        """
        self._reserved[checkpoint_id] = 0
        try:
            yield lambda size_bytes: self._reserve(checkpoint_id, size_bytes)
        finally:
            del self._reserved[checkpoint_id]

    def staging_dir(self, checkpoint_id: str) -> Path:
        parse_checkpoint_id(checkpoint_id)
        path = self._root / "staging" / checkpoint_id
        path.mkdir(exist_ok=True)
        self._staged.setdefault(checkpoint_id, 0)
        return path

    def drop_staging(self, checkpoint_id: str) -> None:
        shutil.rmtree(self._root / "staging" / checkpoint_id, ignore_errors=True)
        self._staged.pop(checkpoint_id, None)

    def keep_staging(self, checkpoint_id: str) -> None:
        """A fetch stopped half-way: what it left counts until it goes on, or is evicted."""
        if checkpoint_id in self._staged:
            self._staged[checkpoint_id] = allocated_bytes(self._root / "staging" / checkpoint_id)

    def writing_dir(self, checkpoint_id: str) -> Path:
        """Where a conversion may write; empty of leftovers, and not made yet."""
        parse_checkpoint_id(checkpoint_id)
        # In a folder of its own, so that what the writer keeps beside it goes with it.
        folder = self._root / "writing" / checkpoint_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder / WHOLE

    def drop_writing(self, checkpoint_id: str) -> None:
        shutil.rmtree(self._root / "writing" / checkpoint_id, ignore_errors=True)

    def written_bytes(self, checkpoint_id: str) -> int:
        """What stands in `writing_dir` now."""
        return directory_bytes(self._root / "writing" / checkpoint_id)

    def offered_dir(self, checkpoint_id: str) -> Path:
        """Where readers find the layout of what is on its way. Stays: one may just have been told of it."""
        parse_checkpoint_id(checkpoint_id)
        return self._root / "offered" / checkpoint_id

    def publish(self, checkpoint_id: str, *, whole: Path | None = None) -> CachedCheckpoint:
        """Make what stands in `writing_dir`, or at `whole`, present: whole or not at all."""
        source = whole if whole is not None else self._root / "writing" / checkpoint_id / WHOLE
        target = self._root / "checkpoints" / checkpoint_id
        sync_directory(source)
        os.rename(source, target)
        # Without this the rename may not outlive a power cut although the caller was told "present".
        sync_directory(target.parent)
        self.drop_writing(checkpoint_id)
        self._admit(checkpoint_id, last_used_unix_s=time.time())
        return self.get(checkpoint_id)

    def remove(self, checkpoint_id: str) -> int:
        """Delete one checkpoint, and answer its bytes. Raises: UnknownCheckpoint, Conflict."""
        entry = self.get(checkpoint_id)
        if not self._may_evict(checkpoint_id):
            raise Conflict(f"{checkpoint_id} is being loaded or read", checkpoint_id=checkpoint_id)
        self._order.forget(checkpoint_id)
        self._delete(entry)
        return entry.size_bytes

    def quarantine(self, checkpoint_id: str) -> Path:
        """Put a checkpoint out of use, for a person to look at; its bytes no longer count as present."""
        entry = self.get(checkpoint_id)
        target = self._root / "quarantine" / f"{checkpoint_id}-{time.time_ns()}"
        # One specimen a checkpoint is enough: more would fill the disk behind the account's back.
        for older in (self._root / "quarantine").glob(f"{checkpoint_id}-*"):
            shutil.rmtree(older, ignore_errors=True)
        os.rename(entry.directory, target)
        del self._entries[checkpoint_id]
        self._order.forget(checkpoint_id)
        log.warning("quarantined checkpoint=%s at=%s", checkpoint_id, target)
        return target

    def quarantined(self) -> tuple[str, ...]:
        """Ids that have a specimen in quarantine."""
        return tuple(sorted({p.name.rpartition("-")[0] for p in (self._root / "quarantine").iterdir()}))

    def _reserve(self, checkpoint_id: str, size_bytes: int) -> None:
        before = self._reserved[checkpoint_id]
        self._reserved[checkpoint_id] = size_bytes
        try:
            self._make_room(checkpoint_id)
        except DiskFull:
            self._reserved[checkpoint_id] = before
            raise

    def _make_room(self, checkpoint_id: str) -> None:
        need = self.used_bytes - self.capacity_bytes
        idle_staging = [one for one in self._staged if one not in self._reserved and self._staged[one]]
        order = self._order.first_to_go({one for one in self._entries if self._may_evict(one)})
        movable = sum(self._staged[one] for one in idle_staging)
        movable += sum(self._entries[one].size_bytes for one in order)
        if need > movable:
            raise DiskFull(
                f"the SSD cache of {self.capacity_bytes} bytes lacks {need - movable} bytes for "
                f"{checkpoint_id}, with everything evicted that is not being read, loaded or fetched",
                checkpoint_id=checkpoint_id,
                lacking_bytes=need - movable,
            )
        for one in idle_staging:
            if self.used_bytes > self.capacity_bytes:
                self.drop_staging(one)
        for one in order:
            if self.used_bytes > self.capacity_bytes:
                log.info("evicted checkpoint=%s bytes=%d", one, self._entries[one].size_bytes)
                self._order.evicted(one)
                self._delete(self._entries[one])

    def _delete(self, entry: CachedCheckpoint) -> None:
        self._on_evict(entry.checkpoint_id)
        # Renamed first: a crash in the midst of deleting must not leave half a checkpoint as present.
        grave = self._root / "writing" / f"{entry.checkpoint_id}-removed-{time.time_ns()}"
        os.rename(entry.directory, grave)
        del self._entries[entry.checkpoint_id]
        shutil.rmtree(grave, ignore_errors=True)

    def _admit(self, checkpoint_id: str, *, last_used_unix_s: float) -> None:
        directory = self._root / "checkpoints" / checkpoint_id
        manifest = json.loads((directory / MANIFEST).read_bytes())
        size_bytes = directory_bytes(directory)
        self._entries[checkpoint_id] = CachedCheckpoint(
            checkpoint_id, directory, size_bytes, str(manifest["digest"]), last_used_unix_s
        )
        self._note_use(checkpoint_id, size_bytes)

    def _note_use(self, checkpoint_id: str, size_bytes: int) -> None:
        # A byte of any checkpoint costs about as much to download again, so what counts is the last use.
        self._order.touch(checkpoint_id, cost_s=size_bytes / DOWNLOAD_BYTES_PER_S, size_bytes=size_bytes)

    def _recover(self) -> None:
        """Take stock at start: leftovers of dead writers go, whole checkpoints are admitted by last use."""
        shutil.rmtree(self._root / "offered")
        (self._root / "offered").mkdir()
        for leftover in (self._root / "writing").iterdir():
            log.info("removing leftover=%s", leftover.name)
            shutil.rmtree(leftover, ignore_errors=True)
        for staged in (self._root / "staging").iterdir():
            self._staged[staged.name] = allocated_bytes(staged)
        found = (self._root / "checkpoints").iterdir()
        for directory in sorted(found, key=lambda path: path.stat().st_mtime):
            try:
                parse_checkpoint_id(directory.name)
                self._admit(directory.name, last_used_unix_s=directory.stat().st_mtime)
            except (FirstlightError, OSError, ValueError, KeyError, TypeError) as failure:
                log.warning("not a checkpoint: %s (%s)", directory.name, failure)
                os.rename(directory, self._root / "quarantine" / f"{directory.name}-{time.time_ns()}")

"""Room in the pool for bytes that do not come from this host's SSD: another host's memory, or the network.

Who fills it writes through `view` from threads of its own and marks each chunk on `board`, verified, once it
is whole. Then `commit`, or `abandon` with the reason; both belong to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firstlight.domain.errors import Conflict, FirstlightError
from gpu_worker.store.extents import Extent
from native_loader import ProgressBoard


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A checkpoint on its way into the pool, as a reader who follows it needs to know it.

    `directory` holds its manifest and config.json; an empty `manifest_digest` is one that is not known yet.
    `files` becomes the folder of all its small files when those have come; None: they stand in `directory`.
    """

    directory: Path
    manifest_digest: str
    board: ProgressBoard
    files: asyncio.Future[Path] | None = None


class Landing:
    """One checkpoint's room and the book of what has arrived in it. Made by `Loads.land` only."""

    def __init__(
        self,
        *,
        checkpoint_id: str,
        extents: tuple[Extent, ...],
        board: ProgressBoard,
        views: Callable[[Extent], memoryview],
        on_commit: Callable[[], None],
        on_abandon: Callable[[], None],
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self.extents = extents
        self.board = board
        self._views = views
        self._on_commit = on_commit
        self._on_abandon = on_abandon
        loop = asyncio.get_running_loop()
        self.arrival: asyncio.Future[Arrival] = loop.create_future()
        self.outcome: asyncio.Future[None] = loop.create_future()
        self._files: asyncio.Future[Path] = loop.create_future()
        for future in (self.arrival, self.outcome, self._files):
            # Looked at, so that a failure nobody waits for is not reported as lost.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def view(self, partition: int) -> memoryview:
        """Writable bytes of one partition, in the arena itself. None may be written after `abandon`."""
        return self._views(self.extents[partition])

    def offer(self, directory: Path, *, manifest_digest: str = "") -> None:
        """Let readers in already: `directory` holds a manifest with this layout, and config.json."""
        if not self.arrival.done():
            found = Arrival(
                directory=directory, manifest_digest=manifest_digest, board=self.board, files=self._files
            )
            self.arrival.set_result(found)

    def offer_files(self, folder: Path) -> None:
        """All its small files are in `folder`: who writes prompts for it need not wait for the weights."""
        if not self._files.done():
            self._files.set_result(folder)

    def commit(self) -> None:
        """Every byte is there and verified: it is resident from now on. Raises: Conflict."""
        missing = self.board.bytes_total - self.board.bytes_done
        if missing or self.outcome.done():
            raise Conflict(
                f"{self.checkpoint_id} cannot be resident: "
                + ("its landing has ended" if self.outcome.done() else f"{missing} bytes are missing"),
                checkpoint_id=self.checkpoint_id,
            )
        self._on_commit()
        self.outcome.set_result(None)

    def abandon(self, failure: FirstlightError) -> None:
        """Give the room back; who waits is told `failure`. Nothing after commit, or the second time."""
        if self.outcome.done():
            return
        # First, so that no reader takes a byte of it that is somebody else's by then.
        self.board.fail()
        self._on_abandon()
        if not self.arrival.done():
            self.arrival.set_exception(failure)
        if not self._files.done():
            self._files.set_exception(failure)
        self.outcome.set_exception(failure)

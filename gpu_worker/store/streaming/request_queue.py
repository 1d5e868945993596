"""The order in which a source is read: along the destination, and within a few megabytes of it in runs.

A request is cut off the front when a reader is free for it, as large as the link then is fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpu_worker.convert.stream_plan import Piece
from gpu_worker.store.streaming.chunk_book import ChunkEntry

# Tensors of one layer lie together in a source, in another order: across so much of the destination they are
# read in theirs, so that small ones come along with their neighbours.
WINDOW_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """A piece within one chunk."""

    chunk: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Request:
    """`parts` follow each other in `file` without a hole, from `start` on."""

    file: str
    start: int
    size_bytes: int
    parts: tuple[Part, ...]


class RequestQueue:
    """Takes are in order; `seams` are places of a file that no request may span."""

    def __init__(
        self,
        entries: Sequence[ChunkEntry],
        *,
        seams: Iterable[tuple[str, int]] = (),
        skip: Iterable[int] = (),
    ) -> None:
        self._seams = frozenset(seams)
        done = set(skip)
        self._runs: deque[deque[Part]] = deque()
        for entry in entries:
            if entry.index not in done:
                self._add(entry)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def put_back(self, entry: ChunkEntry) -> None:
        """Ask for a chunk anew, before all others."""
        rest, self._runs = self._runs, deque()
        self._add(entry)
        self._runs.extend(rest)

    def take(self, size_bytes: int) -> Request | None:
        """The next request, of at most about `size_bytes`; None when all have been taken."""
        if not self._runs:
            return None
        run = self._runs[0]
        taken: list[Part] = []
        room = size_bytes
        while run and room > 0:
            part = self._head(run, room)
            taken.append(part)
            room -= part.piece.source_bytes
        if not run:
            self._runs.popleft()
        first, last = taken[0].piece, taken[-1].piece
        end = last.source_start + last.source_bytes
        return Request(first.file, first.source_start, end - first.source_start, tuple(taken))

    def _head(self, run: deque[Part], room: int) -> Part:
        part = run.popleft()
        piece = part.piece
        if piece.source_bytes <= room or piece.source_bytes <= 4096:
            return part
        # A multiple of 4096 of the destination is whole elements of every type, on both sides.
        step = max(4096, room * piece.size_bytes // piece.source_bytes // 4096 * 4096)
        if step >= piece.size_bytes:
            return part
        run.appendleft(Part(part.chunk, piece.cut(piece.start + step, piece.end)))
        return Part(part.chunk, piece.cut(piece.start, piece.start + step))

    def _add(self, entry: ChunkEntry) -> None:
        windows: dict[int, list[Part]] = {}
        for piece in entry.pieces:
            first, last = piece.start // WINDOW_BYTES, (piece.end - 1) // WINDOW_BYTES
            for window in range(first, last + 1):
                cut = piece.cut(window * WINDOW_BYTES, (window + 1) * WINDOW_BYTES)
                windows.setdefault(window, []).extend(self._at_seams(Part(entry.index, cut)))
        for window in sorted(windows):
            for run in self._runs_of(windows[window]):
                if self._runs and self._follows(self._runs[-1][-1], run[0]):
                    self._runs[-1].extend(run)
                else:
                    self._runs.append(run)

    def _runs_of(self, parts: list[Part]) -> list[deque[Part]]:
        parts.sort(key=lambda part: (part.piece.file, part.piece.source_start))
        runs: list[deque[Part]] = []
        for part in parts:
            if runs and self._follows(runs[-1][-1], part):
                runs[-1].append(part)
            else:
                runs.append(deque([part]))
        return sorted(runs, key=lambda run: min(part.piece.start for part in run))

    def _follows(self, last: Part, part: Part) -> bool:
        """Whether one request can bring both, one after the other."""
        end = last.piece.source_start + last.piece.source_bytes
        is_next = (last.piece.file, end) == (part.piece.file, part.piece.source_start)
        return is_next and (part.piece.file, end) not in self._seams

    def _at_seams(self, part: Part) -> list[Part]:
        piece = part.piece
        if piece.is_packed:
            return [part]  # a seam is no border of blocks, and nobody reads ahead in such files
        inside = sorted(
            at
            for file, at in self._seams
            if file == piece.file and piece.source_start < at < piece.source_start + piece.source_bytes
        )
        cuts = [piece.start]
        cuts += [
            piece.start + (at - piece.source_start) * piece.size_bytes // piece.source_bytes for at in inside
        ]
        cuts.append(piece.end)
        return [Part(part.chunk, piece.cut(low, high)) for low, high in pairwise(cuts)]

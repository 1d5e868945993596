"""The order in which a source is read: chunk by chunk, and within a few chunks in runs of the source.

A request is cut off the front when a reader is free for it, as large as the link then is fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpu_worker.convert.stream_plan import Piece
from gpu_worker.store.streaming.chunk_book import ChunkEntry

# Tensors of one layer lie together in a source, in another order: across this many chunks they are read so.
WINDOW_CHUNKS = 2


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
        for at in range(0, len(entries), WINDOW_CHUNKS):
            self._add([entry for entry in entries[at : at + WINDOW_CHUNKS] if entry.index not in done])

    def __bool__(self) -> bool:
        return bool(self._runs)

    def put_back(self, entry: ChunkEntry) -> None:
        """Ask for a chunk anew, before all others."""
        rest, self._runs = self._runs, deque()
        self._add([entry])
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

    def _add(self, entries: Sequence[ChunkEntry]) -> None:
        parts = [Part(entry.index, piece) for entry in entries for piece in entry.pieces]
        parts = [cut for part in parts for cut in self._at_seams(part)]
        parts.sort(key=lambda part: (part.piece.file, part.piece.source_start))
        runs: list[deque[Part]] = []
        for part in parts:
            last = runs[-1][-1].piece if runs else None
            follows = (
                last is not None
                and last.file == part.piece.file
                and last.source_start + last.source_bytes == part.piece.source_start
                and (last.file, part.piece.source_start) not in self._seams
            )
            if follows:
                runs[-1].append(part)
            else:
                runs.append(deque([part]))
        runs.sort(key=lambda run: min((part.chunk, part.piece.start) for part in run))
        self._runs.extend(runs)

    def _at_seams(self, part: Part) -> list[Part]:
        piece = part.piece
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

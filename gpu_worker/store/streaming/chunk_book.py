"""Which pieces fill which chunk, what of it has come, and where nothing comes: zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpu_worker.convert.stream_plan import Piece, StreamPlan
from native_loader.load_order import Chunk, chunks_in_order


@dataclass(slots=True)
class ChunkEntry:
    """One chunk of a load's order. `known_crc32c` is None when nobody has summed it before."""

    index: int
    chunk: Chunk
    known_crc32c: int | None
    pieces: list[Piece] = field(default_factory=list)
    missing_bytes: int = 0

    @property
    def end(self) -> int:
        return self.chunk.start + self.chunk.length

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Start and end, within the chunk, of what no piece fills."""
        at = self.chunk.start
        for piece in self.pieces:
            if piece.start > at:
                yield at - self.chunk.start, piece.start - self.chunk.start
            at = piece.end
        if at < self.end:
            yield at - self.chunk.start, self.chunk.length


class ChunkBook:
    """Not thread-safe: the event loop of the download keeps it."""

    def __init__(self, plan: StreamPlan) -> None:
        manifest = plan.manifest
        chunks = chunks_in_order([one.size_bytes for one in manifest.partitions], manifest.chunk_bytes)
        self.entries = [
            ChunkEntry(
                index,
                chunk,
                manifest.partitions[chunk.partition].chunk_crc32c[chunk.index]
                if plan.has_checksums
                else None,
            )
            for index, chunk in enumerate(chunks)
        ]
        self._place(plan.pieces, manifest.chunk_bytes)

    @property
    def lengths(self) -> list[int]:
        return [entry.chunk.length for entry in self.entries]

    def arrived(self, index: int, size_bytes: int) -> bool:
        """Note bytes of a chunk; True when they were its last."""
        entry = self.entries[index]
        entry.missing_bytes -= size_bytes
        assert entry.missing_bytes >= 0, "more came than was asked for"
        return entry.missing_bytes == 0

    def reopen(self, index: int) -> None:
        """Every byte of it is to come again."""
        entry = self.entries[index]
        entry.missing_bytes = sum(piece.size_bytes for piece in entry.pieces)

    def _place(self, pieces: Sequence[Piece], chunk_bytes: int) -> None:
        by_place = {(entry.chunk.partition, entry.chunk.index): entry for entry in self.entries}
        for piece in sorted(pieces, key=lambda one: (one.partition, one.start)):
            for number in range(piece.start // chunk_bytes, -(-piece.end // chunk_bytes)):
                part = piece.cut(number * chunk_bytes, (number + 1) * chunk_bytes)
                by_place[piece.partition, number].pieces.append(part)
        for entry in self.entries:
            self.reopen(entry.index)

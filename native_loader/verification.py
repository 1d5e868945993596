"""Holds every byte of a checkpoint against its checksum, in constant memory, and names what is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from firstlight.domain.errors import ChecksumMismatch
from native_loader._native import Arena, LoadJob, Segment
from native_loader.load_order import Chunk, chunks_in_order
from native_loader.paths import StrPath
from native_loader.reader import Checkpoint, open_checkpoint
from native_loader.regular_file import read_regular

WINDOW_CHUNKS = 8

# (bytes_done, bytes_total)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of one file that differs from its checksum, twice.

    `chunk` counts within the file, and is None for a small file; `tensors` are those with bytes in it.
    """

    file: str
    chunk: int | None
    offset: int
    size_bytes: int
    tensors: tuple[str, ...]

    def error(self, checkpoint: Checkpoint) -> ChecksumMismatch:
        where = self.file if self.chunk is None else f"chunk {self.chunk} of {self.file}"
        what = f" (tensors: {', '.join(self.tensors[:5])})" if self.tensors else ""
        return ChecksumMismatch(
            f"{where} differs from its checksum{what}",
            path=str(checkpoint.path / self.file),
            chunk=self.chunk,
            tensors=self.tensors,
        )


def verify(path: StrPath, *, threads: int | None = None, on_progress: Progress | None = None) -> None:
    """Raises: ChecksumMismatch for the first damage found, or what `open_checkpoint` and reading raise."""
    checkpoint = open_checkpoint(path)
    for damage in find_damage(checkpoint, threads=threads, on_progress=on_progress):
        raise damage.error(checkpoint)


def find_damage(
    checkpoint: Checkpoint, *, threads: int | None = None, on_progress: Progress | None = None
) -> Iterator[Damage]:
    """Everything that is damaged, small files first, then chunks in the order of a load.

    Raises: ReadFailed, ManifestInvalid(rule='out_of_file') for a file cut short meanwhile, PoolFull.
    """
    yield from _damaged_files(checkpoint)
    yield from _damaged_chunks(checkpoint, threads, on_progress or (lambda done, total: None))


def _damaged_files(checkpoint: Checkpoint) -> Iterator[Damage]:
    for entry in checkpoint.manifest.files:
        content = read_regular(checkpoint.path / entry.name, limit_bytes=entry.size_bytes)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            yield Damage(entry.name, None, 0, entry.size_bytes, ())


def _damaged_chunks(checkpoint: Checkpoint, threads: int | None, on_progress: Progress) -> Iterator[Damage]:
    manifest = checkpoint.manifest
    chunks = iter(chunks_in_order([p.size_bytes for p in manifest.partitions], manifest.chunk_bytes))
    done = 0
    on_progress(done, manifest.size_bytes)
    if manifest.size_bytes == 0:
        return
    with Arena(WINDOW_CHUNKS * manifest.chunk_bytes, kind="anonymous") as arena:
        while window := list(islice(chunks, WINDOW_CHUNKS)):
            for chunk in _damaged_of(window, checkpoint, arena, threads):
                yield _damage(chunk, checkpoint)
            done += sum(chunk.length for chunk in window)
            on_progress(done, manifest.size_bytes)


def _damaged_of(
    window: list[Chunk], checkpoint: Checkpoint, arena: Arena, threads: int | None
) -> Iterator[Chunk]:
    """A job ends at the first damage it meets; what is left of the window is read again without it."""
    left = window
    while left:
        try:
            LoadJob(arena, _segments(left, checkpoint), threads=threads).result()
        except ChecksumMismatch as error:
            index = error.fields["chunk"]
            assert isinstance(index, int)
            yield left[index]
            left = left[:index] + left[index + 1 :]
        else:
            return


def _segments(window: list[Chunk], checkpoint: Checkpoint) -> list[Segment]:
    manifest = checkpoint.manifest
    return [
        Segment(
            path=str(checkpoint.path / manifest.partitions[chunk.partition].name),
            file_offset=chunk.start,
            length=chunk.length,
            arena_offset=slot * manifest.chunk_bytes,
            crc32c=manifest.partitions[chunk.partition].chunk_crc32c[chunk.index],
        )
        for slot, chunk in enumerate(window)
    ]


def _damage(chunk: Chunk, checkpoint: Checkpoint) -> Damage:
    end = chunk.start + chunk.length
    tensors = tuple(
        entry.name
        for entry in checkpoint.manifest.tensors
        if entry.partition == chunk.partition
        and entry.offset < end
        and entry.offset + entry.size_bytes > chunk.start
    )
    name = checkpoint.manifest.partitions[chunk.partition].name
    return Damage(name, chunk.index, chunk.start, chunk.length, tensors)

"""Opens checkpoints: manifest validated and files measured before anything is read or mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.domain.errors import ChecksumMismatch, ManifestInvalid
from native_loader._native import Arena, Segment
from native_loader.loading import BoundTensors, Loading, LoadPlan
from native_loader.manifest import MANIFEST_NAME, ChunkRead, Manifest, TensorEntry, parse_manifest
from native_loader.paths import StrPath
from native_loader.regular_file import read_regular, regular_size

if TYPE_CHECKING:
    import torch

LARGEST_MANIFEST_BYTES = 64 << 20
"""Some 400,000 tensors. Hostile JSON takes twenty times its size in memory, so the bound is a tight one."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest obeys the format and whose files have the sizes it says."""

    path: Path
    manifest: Manifest

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name, in execution order; aliases after them."""
        entries = {entry.name: entry for entry in self.manifest.tensors}
        return entries | {alias: entries[target] for alias, target in self.manifest.aliases.items()}

    @property
    def size_bytes(self) -> int:
        return self.manifest.size_bytes

    def files(self) -> dict[str, bytes]:
        """The small files (configuration, tokenizer). Raises: ChecksumMismatch, CheckpointMissing."""
        found = {}
        for entry in self.manifest.files:
            content = read_regular(self.path / entry.name, limit_bytes=entry.size_bytes)
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise ChecksumMismatch(
                    f"{entry.name} differs from its checksum", path=str(self.path / entry.name)
                )
            found[entry.name] = content
        return found

    def segments(self, arena_offsets: Sequence[int]) -> list[Segment]:
        """What a LoadJob reads to put partition i at `arena_offsets[i]`, in execution order."""
        return [
            Segment(
                path=path,
                file_offset=start,
                length=length,
                arena_offset=arena_offsets[partition] + start,
                crc32c=crc32c,
            )
            for partition, path, start, length, crc32c in self._reads
        ]

    @cached_property
    def _reads(self) -> list[ChunkRead]:
        # Worked out once: bytes wait for it at every load.
        return self.manifest.reads(self.path)

    def bind(self, buffers: Sequence[memoryview]) -> dict[str, torch.Tensor]:
        """Tensors over memory that holds (or will hold) the partitions, one buffer each; nothing is copied.

        An alias is the very same tensor object. The memory must begin on a 256-byte boundary; the tensors
        keep it alive. Writing to a tensor over a read-only buffer ends the process.
        """
        from native_loader.torch_binding import bind_tensors

        return bind_tensors(self.manifest, buffers)

    def begin(self, *, threads: int | None = None) -> Loading:
        """Start reading into private memory, and answer at once with the tensors bound over it."""
        return Loading(_CheckpointPlan(self), threads=threads)


def open_checkpoint(path: StrPath) -> Checkpoint:
    """Nothing of the partitions is read or mapped yet.

    Raises: CheckpointMissing, ManifestInvalid (out_of_file for a file of another size, bad_path for one that
    is not a plain file), ReadFailed.
    """
    path = Path(path)
    manifest = parse_manifest(read_regular(path / MANIFEST_NAME, limit_bytes=LARGEST_MANIFEST_BYTES))
    sizes = {entry.name: entry.size_bytes for entry in manifest.partitions}
    for name, expected in (sizes | {entry.name: entry.size_bytes for entry in manifest.files}).items():
        found = regular_size(path / name)
        if found != expected:
            raise ManifestInvalid(
                f"{path / name} has {found} bytes, not {expected}",
                rule="out_of_file",
                path=str(path / name),
            )
    return Checkpoint(path, manifest)


class _CheckpointPlan(LoadPlan):
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._offsets, self._memory_bytes = checkpoint.manifest.arena_offsets()

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def segments(self) -> list[Segment]:
        return self._checkpoint.segments(self._offsets)

    def prefix_bytes(self) -> dict[str, int]:
        return self._checkpoint.manifest.prefix_bytes()

    def bind(self, arena: Arena) -> BoundTensors:
        partitions = self._checkpoint.manifest.partitions
        buffers = [
            arena.buffer(offset, partition.size_bytes)
            for offset, partition in zip(self._offsets, partitions, strict=True)
        ]
        return BoundTensors(self._checkpoint.bind(buffers))

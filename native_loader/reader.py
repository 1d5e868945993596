"""Opens checkpoints: manifest validated and files measured before anything is read or mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.domain.errors import CheckpointMissing, ChecksumMismatch, ManifestInvalid, ReadFailed
from native_loader._native import Arena, LoadJob, Segment
from native_loader.manifest import MANIFEST_NAME, Manifest, TensorEntry, parse_manifest

if TYPE_CHECKING:
    import torch

LARGEST_MANIFEST_BYTES = 256 << 20
VERIFY_WINDOW_CHUNKS = 8


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
            content = _read(self.path / entry.name)
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise ChecksumMismatch(
                    f"{entry.name} differs from its checksum", path=str(self.path / entry.name)
                )
            found[entry.name] = content
        return found

    def segments(self, arena_offsets: Sequence[int]) -> list[Segment]:
        """What a LoadJob reads to put partition i at `arena_offsets[i]`, in execution order."""
        return self.manifest.layout_segments(arena_offsets, directory=self.path)

    def bind(self, buffers: Sequence[memoryview]) -> dict[str, torch.Tensor]:
        """Tensors over memory that holds (or will hold) the partitions, one buffer each; nothing is copied.

        An alias is the very same tensor object. The memory must begin on a 256-byte boundary; the tensors
        keep it alive. Writing to a tensor over a read-only buffer ends the process.
        """
        from native_loader.torch_binding import bind_tensors

        return bind_tensors(self.manifest, buffers)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path} does not exist", path=str(path)) from error
    except OSError as error:
        raise ReadFailed(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path} does not exist", path=str(path)) from error
    except OSError as error:
        raise ReadFailed(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises: CheckpointMissing, ManifestInvalid (out_of_file for a file of another size), ReadFailed."""
    location = path / MANIFEST_NAME
    if _size(location) > LARGEST_MANIFEST_BYTES:
        raise ManifestInvalid(f"{location} is larger than any manifest", rule="malformed")
    manifest = parse_manifest(_read(location))
    sizes = {entry.name: entry.size_bytes for entry in manifest.partitions}
    for name, expected in (sizes | {entry.name: entry.size_bytes for entry in manifest.files}).items():
        found = _size(path / name)
        if found != expected:
            raise ManifestInvalid(
                f"{path / name} has {found} bytes, not {expected}",
                rule="out_of_file",
                path=str(path / name),
            )
    return Checkpoint(path, manifest)


def verify(path: Path, *, threads: int = 4) -> None:
    """Read every byte and hold it against its checksum, in constant memory.

    Raises: ChecksumMismatch, or what `open_checkpoint` raises.
    """
    checkpoint = open_checkpoint(path)
    checkpoint.files()
    chunk_bytes = checkpoint.manifest.chunk_bytes
    segments = checkpoint.segments([0] * len(checkpoint.manifest.partitions))
    if not segments:
        return
    with Arena(VERIFY_WINDOW_CHUNKS * chunk_bytes, kind="anonymous") as arena:
        for at in range(0, len(segments), VERIFY_WINDOW_CHUNKS):
            window = [
                Segment(
                    path=segment.path,
                    file_offset=segment.file_offset,
                    length=segment.length,
                    arena_offset=slot * chunk_bytes,
                    crc32c=segment.crc32c,
                )
                for slot, segment in enumerate(segments[at : at + VERIFY_WINDOW_CHUNKS])
            ]
            LoadJob(arena, window, threads=threads).result()

"""What a checkpoint says about itself.

    partition-0.bin   |tensor 0|pad|tensor 1|pad| ... |pad to 4 KiB|     each tensor on a 256-byte boundary
                      |---- chunk 0 ----|---- chunk 1 ----|- .. -|       each chunk with its CRC32C

A `Manifest` in hand obeys every law of the format: `parse_manifest` is the only way to one from bytes, and
raises `ManifestInvalid(rule=...)` otherwise. The laws themselves are in `manifest_laws`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from native_loader.load_order import PrefixTable, chunks_in_order

FORMAT_VERSION = 1
TENSOR_ALIGNMENT_BYTES = 256
PARTITION_ALIGNMENT_BYTES = 4096
ARENA_ALIGNMENT_BYTES = 2 << 20
CHUNK_BYTES = 16 << 20
LARGEST_CHUNK_BYTES = 1 << 30
LONGEST_NAME = 4096
MOST_DIMENSIONS = 64
LARGEST_FILE_BYTES = 256 << 20
"""Of a small file kept beside the partitions: it is read into memory whole."""
MANIFEST_NAME = "manifest.json"
DIGEST_KEY = b',\n"digest":"sha256:'
DIGEST_END = b'"\n}\n'


def align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def partition_name(index: int) -> str:
    return f"partition-{index}.bin"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor's bytes are and how to read them.

    `offset` and `size_bytes` span from the first byte touched to the last; shape and stride count elements.
    `shares` names the first tensor of the same storage when this one's bytes overlap with it (a view).
    """

    name: str
    partition: int
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    shares: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionEntry:
    name: str
    size_bytes: int
    chunk_crc32c: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A small file kept as it was: configuration, tokenizer."""

    name: str
    size_bytes: int
    sha256: str


class ChunkRead(NamedTuple):
    """One chunk of a partition, at `start` of the file `path`."""

    partition: int
    path: str
    start: int
    length: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`tensors` stand in execution order. `aliases` maps further names of a tensor (tied weights) to its own.

    `dtype` is the type most bytes have; `digest` is "sha256:<hex>" over the file's text before it.
    """

    format_version: int
    source: str
    revision: str
    dtype: str
    transformers_version: str | None
    chunk_bytes: int
    partitions: tuple[PartitionEntry, ...]
    tensors: tuple[TensorEntry, ...]
    aliases: MappingProxyType[str, str]
    files: tuple[FileEntry, ...]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all partitions: what a load reads."""
        return sum(partition.size_bytes for partition in self.partitions)

    def arena_offsets(self) -> tuple[tuple[int, ...], int]:
        """An offset per partition, each on a 2 MiB boundary, and the total of memory they need."""
        offsets, end = [], 0
        for partition in self.partitions:
            offsets.append(end)
            end = align_up(end + partition.size_bytes, ARENA_ALIGNMENT_BYTES)
        return tuple(offsets), max(end, ARENA_ALIGNMENT_BYTES)

    def reads(self, directory: Path) -> list[ChunkRead]:
        """The chunks of all partitions as a load reads them: chunk 0 of each, then chunk 1 of each, ..."""
        return [
            ChunkRead(
                partition=chunk.partition,
                path=str(directory / self.partitions[chunk.partition].name),
                start=chunk.start,
                length=chunk.length,
                crc32c=self.partitions[chunk.partition].chunk_crc32c[chunk.index],
            )
            for chunk in chunks_in_order(self._partition_bytes(), self.chunk_bytes)
        ]

    def prefix_bytes(self) -> dict[str, int]:
        """For every tensor and alias, how long a load's `prefix_bytes` must be for it to be there."""
        table = PrefixTable(self._partition_bytes(), self.chunk_bytes)
        needed = {
            entry.name: table.bytes_for(
                partition=entry.partition, offset=entry.offset, size_bytes=entry.size_bytes
            )
            for entry in self.tensors
        }
        return needed | {alias: needed[target] for alias, target in self.aliases.items()}

    def prefix_bytes_for(self, names: Iterable[str]) -> int:
        """How long a load's `prefix_bytes` must be for all of these to be there.

        Raises: KeyError for a name the checkpoint does not have.
        """
        needed = self.prefix_bytes()
        return max((needed[name] for name in names), default=0)

    def _partition_bytes(self) -> list[int]:
        return [partition.size_bytes for partition in self.partitions]


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _lines(entries: Iterable[object]) -> str:
    text = ",\n".join(_line(entry) for entry in entries)
    return f"[\n{text}\n]" if text else "[]"


def _tensor_record(entry: TensorEntry) -> dict[str, object]:
    record = asdict(entry)
    if entry.shares is None:
        del record["shares"]
    return record


def serialize_manifest(manifest: Manifest) -> bytes:
    """The file's text, one entry a line. Its digest covers every byte before it, and is computed here."""
    heads = {
        "format_version": manifest.format_version,
        "source": manifest.source,
        "revision": manifest.revision,
        "dtype": manifest.dtype,
        "transformers_version": manifest.transformers_version,
        "chunk_bytes": manifest.chunk_bytes,
    }
    fields = [f'"{key}":{_line(value)}' for key, value in heads.items()]
    fields.append(f'"partitions":{_lines(asdict(entry) for entry in manifest.partitions)}')
    fields.append(f'"tensors":{_lines(_tensor_record(entry) for entry in manifest.tensors)}')
    fields.append(f'"aliases":{_line(dict(manifest.aliases))}')
    fields.append(f'"files":{_lines(asdict(entry) for entry in manifest.files)}')
    return seal(("{\n" + ",\n".join(fields)).encode("ascii"))


def seal(body: bytes) -> bytes:
    """`body` (the text of an open JSON object) closed with its digest."""
    return body + DIGEST_KEY + hashlib.sha256(body).hexdigest().encode() + DIGEST_END


def sealed(manifest: Manifest) -> tuple[Manifest, bytes]:
    """The manifest with its digest filled in, and its text."""
    text = serialize_manifest(manifest)
    digest = text[-len(DIGEST_END) - 64 : -len(DIGEST_END)].decode()
    return replace(manifest, digest=f"sha256:{digest}"), text


def parse_manifest(text: bytes) -> Manifest:
    """Decode and hold against every law of the format. Raises: ManifestInvalid, its `rule` naming the law."""
    from native_loader.manifest_decoder import decode_manifest
    from native_loader.manifest_laws import check_manifest

    manifest = decode_manifest(text)
    check_manifest(manifest)
    return manifest

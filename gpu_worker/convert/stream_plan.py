"""Which bytes of a source make up a checkpoint: what is needed to convert while downloading.

Knows no torch and moves no byte. A plan holds the manifest as it will be, but for checksums and the files
that are not known yet (`Manifest.files`), and the pieces that fill its partitions; the rest of them is zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firstlight.domain.errors import SourceCorrupt
from gpu_worker.convert.packed_types import PACKED
from native_loader.dtypes import BITS
from native_loader.manifest import FileEntry, Manifest, PartitionEntry, parse_manifest, sealed
from native_loader.manifest_laws import is_plain_file_name

PLAN_NAME = "plan.json"
PROVISIONAL_NAME = "provisional-manifest.json"
# One less than a float32, itself a float32: GGUF files hold the norms of some models with one added.
LESS_ONE = "F32-1"
# The types between which a weight may be cast on its way; element by element, without a look at others.
CASTABLE = frozenset({"F64", "F32", "BF16", "F16", LESS_ONE})


@dataclass(frozen=True, slots=True)
class Piece:
    """`size_bytes` of a partition from `start` are `source_bytes` of `file` from `source_start`.

    `dtypes` are the types its elements are cast through, first to last; one or none: copied as they are.
    The first may be packed: then the source is whole blocks, and the piece begins `skip` elements into them.
    """

    partition: int
    start: int
    size_bytes: int
    file: str
    source_start: int
    source_bytes: int
    dtypes: tuple[str, ...] = ()
    skip: int = 0

    @property
    def is_copy(self) -> bool:
        return len(self.dtypes) < 2

    @property
    def is_packed(self) -> bool:
        return len(self.dtypes) > 1 and self.dtypes[0] in PACKED

    @property
    def elements(self) -> int:
        """How many the destination has of them. Of a copy without a type, its bytes."""
        return self.size_bytes // (_element_bytes(self.dtypes[-1]) if self.dtypes else 1)

    @property
    def end(self) -> int:
        return self.start + self.size_bytes

    def cut(self, start: int, end: int) -> Piece:
        """Its part between two places of the partition, both on an element's boundary."""
        low, high = max(start, self.start), min(end, self.end)
        if self.is_packed:
            return self._cut_packed(low, high)
        before = self.to_source(low - self.start)
        return replace(
            self,
            start=low,
            size_bytes=high - low,
            source_start=self.source_start + before,
            source_bytes=self.to_source(high - self.start) - before,
        )

    def to_source(self, size_bytes: int) -> int:
        """Bytes of the source that make up the first `size_bytes` of it; not of a packed one."""
        return size_bytes if self.is_copy else size_bytes * self.source_bytes // self.size_bytes

    def _cut_packed(self, low: int, high: int) -> Piece:
        """A block that is cut through belongs to both sides, and is read for each."""
        block, each = PACKED[self.dtypes[0]], _element_bytes(self.dtypes[-1])
        first = self.skip + (low - self.start) // each
        last = self.skip + (high - self.start) // each
        begin, end = first // block.elements, -(-last // block.elements)
        return replace(
            self,
            start=low,
            size_bytes=high - low,
            source_start=self.source_start + begin * block.size_bytes,
            source_bytes=(end - begin) * block.size_bytes,
            skip=first - begin * block.elements,
        )


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """`manifest` has zeros for checksums unless `has_checksums`; `files` are contents known already."""

    manifest: Manifest
    pieces: tuple[Piece, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    has_checksums: bool = False

    @property
    def source_bytes(self) -> int:
        return sum(piece.source_bytes for piece in self.pieces)

    def digest_of_pieces(self) -> str:
        """Changes with any place, type or source of a byte. A plan of another day may differ."""
        text = json.dumps([_row(piece) for piece in self.pieces]) + str(self.manifest.chunk_bytes)
        return hashlib.sha256(text.encode()).hexdigest()


def unchecked(manifest: Manifest) -> Manifest:
    """The manifest with zeros where checksums will stand."""
    partitions = tuple(
        PartitionEntry(one.name, one.size_bytes, (0,) * -(-one.size_bytes // manifest.chunk_bytes))
        for one in manifest.partitions
    )
    return sealed(replace(manifest, partitions=partitions))[0]


def file_entry(name: str, content: bytes) -> FileEntry:
    """What a manifest says of a small file."""
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def write_plan(plan: StreamPlan, directory: Path) -> None:
    """Keep a plan for another process. Its manifest goes to a file of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    _, text = sealed(plan.manifest)
    (directory / PROVISIONAL_NAME).write_bytes(text)
    record = {
        "pieces": [_row(piece) for piece in plan.pieces],
        "files": {name: content.decode("latin-1") for name, content in plan.files},
        "has_checksums": plan.has_checksums,
    }
    (directory / PLAN_NAME).write_text(json.dumps(record))


def read_plan(directory: Path, *, file_sizes: dict[str, int]) -> StreamPlan:
    """Raises: SourceCorrupt, ManifestInvalid for a plan that no source of these sizes can have."""
    try:
        record = json.loads((directory / PLAN_NAME).read_bytes())
        plan = StreamPlan(
            parse_manifest((directory / PROVISIONAL_NAME).read_bytes()),
            tuple(_piece(row) for row in record["pieces"]),
            tuple((str(name), str(text).encode("latin-1")) for name, text in record["files"].items()),
            bool(record["has_checksums"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise SourceCorrupt(f"the plan of a download cannot be read: {failure!r}") from failure
    check_plan(plan, file_sizes=file_sizes)
    return plan


def check_plan(plan: StreamPlan, *, file_sizes: dict[str, int]) -> None:
    """Every piece lies in its file and its partition, and none overlap. Raises: SourceCorrupt."""
    sizes = [partition.size_bytes for partition in plan.manifest.partitions]
    at = [0] * len(sizes)
    for piece in sorted(plan.pieces, key=lambda one: (one.partition, one.start)):
        is_inside = (
            0 <= piece.partition < len(sizes)
            and at[piece.partition] <= piece.start
            and piece.size_bytes > 0
            and piece.end <= sizes[piece.partition]
            and piece.source_start >= 0
            and piece.source_start + piece.source_bytes <= file_sizes.get(piece.file, -1)
        )
        if not is_inside or not _has_sound_types(piece):
            raise SourceCorrupt(f"the plan of a download reads {piece.file} where it has no such bytes")
        at[piece.partition] = piece.end
    for name, _ in plan.files:
        if not is_plain_file_name(name):
            raise SourceCorrupt(f"the plan of a download names a file {name[:120]!r}")


def _has_sound_types(piece: Piece) -> bool:
    if piece.is_copy:
        return piece.source_bytes == piece.size_bytes
    if not CASTABLE.issuperset(piece.dtypes[1:]) or piece.size_bytes % _element_bytes(piece.dtypes[-1]):
        return False
    if piece.is_packed:
        block = PACKED[piece.dtypes[0]]
        return piece.dtypes[1] == "F32" and (piece.source_bytes, piece.elements % block.elements) == (
            piece.elements // block.elements * block.size_bytes,
            0,
        )
    each = _element_bytes(piece.dtypes[0]) if piece.dtypes[0] in CASTABLE else 0
    return piece.elements * each == piece.source_bytes


def _element_bytes(dtype: str) -> int:
    return BITS["F32" if dtype == LESS_ONE else dtype] // 8


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Neighbours that continue each other on both sides become one."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        continues = (
            last is not None
            and (last.partition, last.end) == (piece.partition, piece.start)
            and (last.file, last.source_start + last.source_bytes) == (piece.file, piece.source_start)
            and (last.dtypes == piece.dtypes or (last.is_copy and piece.is_copy))
        )
        if continues and last is not None:
            found[-1] = replace(
                last,
                size_bytes=last.size_bytes + piece.size_bytes,
                source_bytes=last.source_bytes + piece.source_bytes,
            )
        else:
            found.append(piece)
    return tuple(found)


def _row(piece: Piece) -> list[object]:
    return [
        *(piece.partition, piece.start, piece.size_bytes),
        *(piece.file, piece.source_start, piece.source_bytes),
        list(piece.dtypes),
    ]


# Any: a row of JSON, checked by check_plan.
def _piece(row: Sequence[Any]) -> Piece:
    partition, start, size_bytes, file, source_start, source_bytes, dtypes = row
    return Piece(
        int(partition),
        int(start),
        int(size_bytes),
        str(file),
        int(source_start),
        int(source_bytes),
        tuple(str(dtype) for dtype in dtypes),
    )

"""Reads safetensors files as they are: header validated, tensors as views of the mapped file. No torch.

|8 bytes: N, little endian|N bytes: JSON header|tensor data, without holes ... |
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable
from native_loader.dtypes import BITS

LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """`offset` counts from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    tensors: Mapping[str, SourceTensor]
    metadata: Mapping[str, str]


def header_length(prefix: bytes, *, file_bytes: int) -> int:
    """Bytes of the JSON header, from a file's first eight. Raises: SourceCorrupt."""
    if len(prefix) < LENGTH_BYTES or file_bytes < LENGTH_BYTES:
        raise SourceCorrupt("not a safetensors file: shorter than 8 bytes")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if not 0 < length <= min(LARGEST_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise SourceCorrupt(f"not a safetensors file: a header of {length} bytes in a file of {file_bytes}")
    return length


def parse_header(header: bytes, *, file_bytes: int) -> SafetensorsHeader:
    """Validate the JSON header of a file of `file_bytes`; `header` excludes the eight length bytes.

    Raises: SourceCorrupt if it is not JSON of the format, or its tensors do not cover the file exactly.
    """
    try:
        record = json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise SourceCorrupt(f"unreadable safetensors header: {error}") from error
    if not isinstance(record, dict):
        raise SourceCorrupt("the safetensors header is not an object")
    metadata = record.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceCorrupt("the safetensors metadata is not a map of strings")
    start = LENGTH_BYTES + len(header)
    tensors = sorted((_tensor(name, value, start) for name, value in record.items()), key=_by_place)
    _check_cover(tensors, start=start, file_bytes=file_bytes)
    return SafetensorsHeader(
        MappingProxyType({tensor.name: tensor for tensor in tensors}), MappingProxyType(metadata)
    )


def _by_place(tensor: SourceTensor) -> tuple[int, int]:
    return tensor.offset, tensor.size_bytes


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise SourceCorrupt("a name stands twice in a safetensors header")
    return record


def _is_count_list(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _tensor(name: str, value: object, data_start: int) -> SourceTensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise SourceCorrupt(f"{name!r} is not described as safetensors has it", name=name)
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise SourceCorrupt(f"{name!r} is of unknown dtype {dtype!r}", name=name)
    if not _is_count_list(shape) or not _is_count_list(span) or len(span) != 2 or span[0] > span[1]:
        raise SourceCorrupt(f"the shape or offsets of {name!r} make no sense", name=name)
    size_bytes = span[1] - span[0]
    if prod(shape) * BITS[dtype] != size_bytes * 8:
        raise SourceCorrupt(f"{name!r} has {size_bytes} bytes, which its shape contradicts", name=name)
    return SourceTensor(name, dtype, tuple(shape), data_start + span[0], size_bytes)


def _check_cover(tensors: list[SourceTensor], *, start: int, file_bytes: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise SourceCorrupt(f"{tensor.name!r} overlaps or leaves a hole", name=tensor.name)
        end += tensor.size_bytes
    if end != file_bytes:
        raise SourceCorrupt(f"tensors end at byte {end} of a file of {file_bytes}")


class SafetensorsFile:
    """A local file, mapped. Views from `buffer` must be released before `close`.

    Raises: SourceUnreachable if it cannot be opened, SourceCorrupt.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                file_bytes = file.seek(0, 2)
                if file_bytes < LENGTH_BYTES:
                    raise SourceCorrupt(f"{path.name} is not a safetensors file: {file_bytes} bytes")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SourceUnreachable(f"cannot open {path}: {error}", path=str(path)) from error
        self._view = memoryview(self._map)
        try:
            length = header_length(self._map[:LENGTH_BYTES], file_bytes=file_bytes)
            header = parse_header(self._map[LENGTH_BYTES : LENGTH_BYTES + length], file_bytes=file_bytes)
        except SourceCorrupt as error:
            self.close()
            raise SourceCorrupt(f"{path.name}: {error.message}", path=str(path)) from error
        self.tensors = header.tensors
        self.metadata = header.metadata

    def buffer(self, name: str) -> memoryview:
        """The tensor's bytes, not copied. Raises: KeyError."""
        tensor = self.tensors[name]
        return self._view[tensor.offset : tensor.offset + tensor.size_bytes]

    def close(self) -> None:
        self._view.release()
        self._map.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

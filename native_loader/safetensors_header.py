"""What a safetensors file says about itself, believed only where it obeys the format. No torch.

|8 bytes: N, little endian|N bytes: JSON header|tensor data, without holes ... |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import NoReturn

from firstlight.domain.errors import SourceCorrupt
from native_loader.dtypes import BITS, SAFETENSORS
from native_loader.manifest import LONGEST_NAME, MOST_DIMENSIONS

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
    # Given bytes, json would take UTF-16 and UTF-32 too; given text, white space in front and NaN.
    if not header.startswith(b"{"):
        raise SourceCorrupt("the safetensors header does not begin with '{'")
    try:
        text = header.decode("utf-8")
        record = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_whole_number if "-0" in text else None,
        )
        _check_names(record)
    except (ValueError, RecursionError) as error:
        raise SourceCorrupt(f"unreadable safetensors header: {error}") from error
    metadata = record.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceCorrupt("the safetensors metadata is not a map of strings")
    start = LENGTH_BYTES + len(header)
    tensors = sorted((_tensor(name, value, start) for name, value in record.items()), key=_by_place)
    _check_cover(tensors, start=start, file_bytes=file_bytes)
    return SafetensorsHeader(
        MappingProxyType({tensor.name: tensor for tensor in tensors}), MappingProxyType(metadata)
    )


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _whole_number(text: str) -> int:
    """Zero has no sign where it counts something; the format's own library refuses it too."""
    if text == "-0":
        raise ValueError("a count of -0")
    return int(text)


def _check_names(record: Mapping[str, object]) -> None:
    """Raises: ValueError for a name that is half a surrogate pair (no UTF-8 can say it) or endless."""
    for name in record:
        name.encode("utf-8")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a tensor's name has {len(name)} characters")


def _by_place(tensor: SourceTensor) -> tuple[int, int]:
    return tensor.offset, tensor.size_bytes


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise SourceCorrupt("a name stands twice in a safetensors header")
    return record


def _is_count_list(value: object) -> bool:
    """Natural numbers below 2^63, and few enough that their product is no number of a million digits."""
    return (
        isinstance(value, list)
        and len(value) <= MOST_DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _tensor(name: str, value: object, data_start: int) -> SourceTensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise SourceCorrupt(f"{name!r} is not described as safetensors has it", name=name)
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS:
        raise SourceCorrupt(f"{name!r} is of unknown dtype {str(dtype)[:40]!r}", name=name)
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

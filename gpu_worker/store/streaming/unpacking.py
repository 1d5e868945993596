"""Unpacks the weights of a GGUF file, a few blocks at a time, with gguf's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gpu_worker.convert.packed_types import PACKED
from gpu_worker.convert.stream_plan import Piece
from gpu_worker.store.streaming.casting import Array, cast_array

# A megabyte of float32. What gguf needs besides is a small multiple of it.
AT_ONCE_ELEMENTS = 1 << 18


def unpack_into(
    place: Callable[[Piece], memoryview], pieces: Iterable[Piece], data: memoryview, *, data_start: int
) -> None:
    """Write packed `pieces`, whose bytes are in `data` from `data_start` of their file on, to their places.

    Small neighbours are unpacked together: a permuted weight comes as a piece for every row.
    """
    for group in _groups(part for piece in pieces for part in _small(piece)):
        start, end = group[0].source_start, group[-1].source_start + group[-1].source_bytes
        kind = group[0].dtypes[0]
        block = PACKED[kind]
        values = unpacked(data[start - data_start : end - data_start], kind)
        for piece in group:
            at = (piece.source_start - start) // block.size_bytes * block.elements + piece.skip
            cast_array(place(piece), values[at : at + piece.elements], piece.dtypes[1:])


def unpacked(blocks: memoryview, kind: str) -> Array:
    """The float32 elements of whole blocks."""
    import gguf  # takes a while, and few downloads need it

    one_row = np.frombuffer(blocks, dtype=np.uint8).reshape(1, -1)
    # Overflow to infinity and NaN are what such blocks say.
    with np.errstate(all="ignore"):
        values: Array = gguf.dequantize(one_row, gguf.GGMLQuantizationType[kind])
    return values.reshape(-1)


def _small(piece: Piece) -> Iterator[Piece]:
    """The piece in parts that are unpacked at once."""
    step = piece.size_bytes // piece.elements * AT_ONCE_ELEMENTS
    for start in range(piece.start, piece.end, step):
        yield piece.cut(start, min(start + step, piece.end))


def _groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Neighbours of one type, no more of them than fit at once."""
    group: list[Piece] = []
    elements = 0
    for piece in pieces:
        if group and (
            elements + piece.elements > AT_ONCE_ELEMENTS
            or piece.dtypes[0] != group[-1].dtypes[0]
            or piece.source_start != group[-1].source_start + group[-1].source_bytes
        ):
            yield group
            group, elements = [], 0
        group.append(piece)
        elements += piece.elements
    if group:
        yield group

"""Casts between the floating-point types of checkpoints, bit for bit as torch does them, without torch.

In blocks that fit the processor's cache; numpy lets go of the interpreter while it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpu_worker.convert.stream_plan import LESS_ONE

# Any: arrays of several element types take turns in one chain of casts.
Array: TypeAlias = npt.NDArray[Any]

BLOCK_ELEMENTS = 1 << 16
_STORED: dict[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    LESS_ONE: np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}


def cast_into(destination: memoryview, source: memoryview, dtypes: Sequence[str]) -> None:
    """Write `source` (elements of dtypes[0]) to `destination` (of dtypes[-1]), through the types between."""
    cast_array(destination, np.frombuffer(source, dtype=_STORED[dtypes[0]]), dtypes)


def cast_array(destination: memoryview, given: Array, dtypes: Sequence[str]) -> None:
    """The same of elements that are an array already."""
    made = np.frombuffer(destination, dtype=_STORED[dtypes[-1]])
    # Overflow to infinity, and NaN kept as one, are what is wanted.
    with np.errstate(all="ignore"):
        for at in range(0, len(given), BLOCK_ELEMENTS):
            block: Array = given[at : at + BLOCK_ELEMENTS]
            for kind, wanted in pairwise(dtypes):
                block = _cast(block, kind, wanted)
            made[at : at + BLOCK_ELEMENTS] = block


def copy_into(destination: memoryview, source: memoryview) -> None:
    """A copy that lets other threads run, unlike a memoryview's own."""
    np.copyto(np.frombuffer(destination, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))


def _cast(block: Array, kind: str, wanted: str) -> Array:
    if kind == wanted:
        return block
    wide = _widened(block) if kind == "BF16" else block
    if wanted == "F32" or (wanted == "F16" and kind != "F64"):
        return wide.astype(_STORED[wanted], copy=False)
    # From float64 by way of float32, rounded twice: so does torch.
    wide = wide.astype(np.float32, copy=False)
    if wanted == LESS_ONE:
        return wide - np.float32(1)
    return _rounded(wide) if wanted == "BF16" else wide.astype(np.float16)


def _widened(block: Array) -> Array:
    """bfloat16 is the upper half of a float32."""
    return (block.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _rounded(block: Array) -> Array:
    """To nearest, ties to even; every NaN becomes 0x7FC0, as torch has it."""
    bits = block.view(np.uint32)
    lowest = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + (lowest + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
    if (is_nan := np.isnan(block)).any():
        rounded[is_nan] = 0x7FC0
    return rounded

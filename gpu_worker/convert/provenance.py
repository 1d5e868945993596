"""Follows a model's loading on tensors without bytes, to learn which bytes of the source every weight is.

Source tensors are on the meta device, each with a storage of its own. Views keep the storage; what makes a
new one (a cast, a concatenation, a stack, a clone) is recorded as it happens. A weight whose elements cannot
be told as runs of source elements has no provenance, and the model must be loaded for real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# A fused weight of many experts has two runs for each of them; more than this is no copy but a shuffle.
MOST_RUNS = 100_000


class LessOne(Enum):
    """A step that is no cast: one is taken from a float32."""

    OF_FLOAT32 = auto()


Step = torch.dtype | LessOne


@dataclass(frozen=True, slots=True)
class Run:
    """`length` elements of `source` from element `start`, in the types they were cast through."""

    source: str
    start: int
    length: int
    dtypes: tuple[Step, ...]

    @property
    def dtype(self) -> torch.dtype:
        last = self.dtypes[-1]
        return torch.float32 if isinstance(last, LessOne) else last


Runs = tuple[Run, ...]


class Provenance(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own base is untyped
    """Active while a model is loaded from the tensors of `sources`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._runs: dict[int, Runs | None] = {}
        # What has been copied into a tensor part by part: where in its storage, and what.
        self._parts: dict[int, dict[int, Runs]] = {}
        # A storage's address is its identity here, so none may be freed and its address used again.
        self._kept: list[torch.Tensor] = []

    def source(self, name: str, *, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor without bytes that stands for the source's tensor `name`."""
        tensor = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self._note(tensor, (Run(name, 0, tensor.numel(), (dtype,)),) if tensor.numel() else ())
        return tensor

    def runs_of(self, tensor: torch.Tensor) -> Runs | None:
        """What `tensor` is made of, element by element in row-major order; None if it cannot be told."""
        whole = self._runs.get(_identity(tensor))
        if whole is None or tensor.dtype != (whole[0].dtype if whole else tensor.dtype):
            return None
        if tensor.numel() == 0:
            return ()
        starts, length = _stretches(tensor)
        if len(starts) * len(whole) > MOST_RUNS:
            return None
        return tuple(run for start in starts for run in _cut(whole, start, length))

    # Any: the signature that torch calls.
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            self._note_part(args[0], args[1])
        if isinstance(result, torch.Tensor) and result.is_meta and _identity(result) not in self._runs:
            self._note(result, self._made_by(func, args, result))
        return result

    def _note(self, tensor: torch.Tensor, runs: Runs | None) -> None:
        self._kept.append(tensor)
        self._runs[_identity(tensor)] = runs

    def _note_part(self, into: torch.Tensor, part: torch.Tensor) -> None:
        """`part` is copied into a view of a tensor; once all of that is filled, it is known."""
        runs = self.runs_of(part)
        if not into.is_meta or runs is None or into.shape != part.shape:
            self._parts.pop(_identity(into), None)
            self._runs[_identity(into)] = None
            return
        starts, length = _stretches(into)
        parts = self._parts.setdefault(_identity(into), {})
        for index, start in enumerate(starts):
            parts[start] = _cast(_cut(runs, index * length, length), into.dtype)
        self._runs[_identity(into)] = _whole(parts, into.untyped_storage().nbytes() // into.itemsize)

    def _made_by(self, func: Any, args: tuple[Any, ...], result: torch.Tensor) -> Runs | None:
        aten = torch.ops.aten
        if func in (aten._to_copy.default, aten.clone.default, aten.sub.Tensor) and result.is_contiguous():
            runs = self.runs_of(args[0])
            if runs is None or func is not aten.sub.Tensor:
                return None if runs is None else _cast(runs, result.dtype)
            is_known = _is_less_one(args) and result.dtype == torch.float32
            return _stepped(runs, LessOne.OF_FLOAT32) if is_known else None
        if func is aten.cat.default:
            return self._joined(args[0], _dimension(args, result.dim()))
        if func is aten.stack.default:
            dimension = _dimension(args, result.dim())
            return self._joined([part.unsqueeze(dimension) for part in args[0]], dimension)
        return None

    def _joined(self, parts: Sequence[torch.Tensor], dimension: int) -> Runs | None:
        """Row by row of what stands before `dimension`, each part's share of it."""
        found = [self.runs_of(part) for part in parts]
        rows = prod(parts[0].shape[:dimension])
        if any(runs is None for runs in found) or rows * len(parts) > MOST_RUNS:
            return None
        shares = [part.numel() // max(rows, 1) for part in parts]
        joined: list[Run] = []
        for row in range(rows):
            for runs, share in zip(found, shares, strict=True):
                joined += _cut(runs or (), row * share, share)
        return tuple(joined)


def _whole(parts: dict[int, Runs], elements: int) -> Runs | None:
    """The parts one after the other, if they fill so many elements without a gap."""
    joined: list[Run] = []
    at = 0
    for start in sorted(parts):
        if start != at:
            return None
        joined += parts[start]
        at += sum(run.length for run in parts[start])
    return tuple(joined) if at == elements else None


def _identity(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _dimension(args: tuple[Any, ...], rank: int) -> int:
    dimension = int(args[1]) if len(args) > 1 else 0
    return dimension % rank


def _is_less_one(args: tuple[Any, ...]) -> bool:
    return len(args) == 2 and not isinstance(args[1], torch.Tensor) and args[1] == 1


def _cast(runs: Runs, dtype: torch.dtype) -> Runs:
    return tuple(run if run.dtype == dtype else _stepped((run,), dtype)[0] for run in runs)


def _stepped(runs: Runs, step: Step) -> Runs:
    return tuple(replace(run, dtypes=(*run.dtypes, step)) for run in runs)


def _stretches(tensor: torch.Tensor) -> tuple[list[int], int]:
    """Places in its storage, in row-major order, from where `length` elements follow each other."""
    length, rank = 1, tensor.dim()
    while rank and (tensor.stride(rank - 1) == length or tensor.shape[rank - 1] == 1):
        rank -= 1
        length *= tensor.shape[rank]
    if prod(tensor.shape[:rank]) > MOST_RUNS:
        return [0] * (MOST_RUNS + 1), length
    starts = [int(tensor.storage_offset())]
    for dimension in range(rank):
        step = tensor.stride(dimension)
        starts = [start + index * step for start in starts for index in range(tensor.shape[dimension])]
    return starts, length


def _cut(runs: Runs, start: int, length: int) -> Runs:
    """The runs of `length` elements from element `start` on."""
    found, at, end = [], 0, start + length
    for run in runs:
        low, high = max(start, at), min(end, at + run.length)
        if low < high:
            found.append(replace(run, start=run.start + low - at, length=high - low))
        at += run.length
        if at >= end:
            break
    return tuple(found)

"""Lets transformers load a GGUF file without reading a weight, and follows what it makes of each.

Its loader unpacks every tensor with gguf's `dequantize`, rearranges it as a numpy array, and makes a torch
tensor of it. While `following_gguf` is active, `dequantize` answers a stand-in for the array that the tensor
would be, and `torch.from_numpy` takes stand-ins too. What a stand-in is asked for happens to a tensor
without bytes; what it does not know raises TypeError, and the file is converted whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import torch

from firstlight.domain.errors import SourceCorrupt
from gpu_worker.convert.packed_types import PACKED
from gpu_worker.convert.provenance import Provenance
from gpu_worker.convert.quick_gguf import quick_reader

# Of these, a weight's bytes are its elements, widened to float32 like the packed ones.
_PLAIN = frozenset({"F32", "F16", "BF16"})
_UNREADABLE = (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor of a file stands. `kind` is gguf's name of its type; the shape is torch's."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def gguf_tensors(path: Path) -> dict[str, GgufTensor]:
    """Every tensor of a file that may be its header over a hole. Raises: SourceCorrupt."""
    try:
        return {str(each.name): _described(each) for each in quick_reader(path).tensors}
    except _UNREADABLE as failure:
        raise SourceCorrupt(f"{path.name} cannot be read as GGUF: {failure}") from failure


# Any: gguf is untyped.
def _described(tensor: Any) -> GgufTensor:
    return GgufTensor(
        name=str(tensor.name),
        kind=str(tensor.tensor_type.name),
        shape=tuple(int(size) for size in reversed(tensor.shape.tolist())),
        offset=int(tensor.data_offset),
        size_bytes=int(tensor.n_bytes),
    )


class Unfollowed(Exception):
    """A type of weight that cannot be unpacked block by block."""


@contextmanager
def following_gguf(path: Path, following: Provenance) -> Iterator[None]:
    """Loads of this file are followed, in this process, until the end of the block."""
    # By identity: `dequantize` is given a tensor's data and not its name.
    found = {id(tensor.data): _described(tensor) for tensor in quick_reader(path).tensors}

    def dequantize(data: object, _kind: object) -> _StandIn:
        tensor = found[id(data)]
        if tensor.kind not in PACKED and tensor.kind not in _PLAIN:
            raise Unfollowed(f"{tensor.name} is of type {tensor.kind}")
        return _StandIn(following.source(tensor.name, shape=tensor.shape, dtype=torch.float32))

    with (
        _replaced(gguf, "dequantize", dequantize),
        _replaced(torch, "from_numpy", _from_numpy),
        _replaced(torch, "zeros", _zeros),
    ):
        yield


class _StandIn:
    """As much of a float32 array as transformers' processors of GGUF weights use."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def T(self) -> _StandIn:  # numpy's name
        return _StandIn(self.tensor.permute(*reversed(range(self.tensor.dim()))))

    def reshape(self, *shape: Any) -> _StandIn:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return _StandIn(self.tensor.reshape(sizes))

    def swapaxes(self, first: int, second: int) -> _StandIn:
        return _StandIn(self.tensor.transpose(first, second))

    def __getitem__(self, index: Any) -> _StandIn:
        return _StandIn(self.tensor[index])

    def __sub__(self, number: float) -> _StandIn:
        return _StandIn(self.tensor - number)

    # Any: the protocol by which numpy's functions ask what they are given.
    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.copy and not kwargs:
            return args[0]
        if func is np.expand_dims:
            return _StandIn(args[0].tensor.unsqueeze(kwargs.get("axis", args[-1])))
        return NotImplemented


_from_array = cast("Callable[[Any], torch.Tensor]", torch.from_numpy)


_make_zeros = cast("Callable[..., torch.Tensor]", torch.zeros)


def _from_numpy(array: Any) -> torch.Tensor:
    return array.tensor if isinstance(array, _StandIn) else _from_array(array)


def _zeros(*size: Any, **options: Any) -> torch.Tensor:
    """What experts are put together in: as large as all of them, and without bytes too."""
    return _make_zeros(*size, **{**options, "device": "meta"})


# Any: a module, and whatever stands in it.
@contextmanager
def _replaced(module: Any, name: str, stand_in: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, stand_in)
    try:
        yield
    finally:
        setattr(module, name, before)

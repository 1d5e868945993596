"""Torch tensors as bytes to be written: extents, shared storages, tied weights.

Tensors whose bytes overlap are written once and keep their places in it; the very same view under two names
becomes an alias.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firstlight.domain.errors import SourceUnsupported
from native_loader.dtypes import dtype_name, is_packed
from native_loader.manifest_laws import contiguous_stride, extent_bytes
from native_loader.writer import StorageMember

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Span:
    """One tensor, normalised, and the addresses its elements touch."""

    name: str
    tensor: torch.Tensor
    member: StorageMember
    start: int
    end: int

    @property
    def identity(self) -> tuple[object, ...]:
        return self.start, self.end, self.member.dtype, self.member.shape, self.member.stride


def _normalised(name: str, tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise SourceUnsupported(f"{name!r} is not a plain tensor with bytes", name=name)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return tensor.contiguous() if is_packed(dtype_name(tensor.dtype)) else tensor


def span_of(name: str, tensor: torch.Tensor) -> Span:
    """Raises: SourceUnsupported for sparse, quantized or meta tensors and types outside of the format."""
    tensor = _normalised(name, tensor)
    dtype, shape, stride = dtype_name(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride())
    if is_packed(dtype):  # two to a byte in torch; counted one by one in the format
        shape = (*shape[:-1], shape[-1] * 2)
        stride = contiguous_stride(shape)
    size_bytes = extent_bytes(dtype=dtype, shape=shape, stride=stride)
    start = tensor.data_ptr()
    return Span(name, tensor, StorageMember(name, 0, dtype, shape, stride), start, start + size_bytes)


def memory_of(spans: Sequence[Span]) -> memoryview:
    """The bytes from the first span's beginning to the last one's end; the view keeps the tensors alive."""
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    if end == start:
        return memoryview(b"")
    memory = (ctypes.c_char * (end - start)).from_address(start)
    # A bare address owns nothing: a copy made from another device would be freed under the view.
    memory.owners = [span.tensor for span in spans]  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")


def tensor_member(name: str, tensor: torch.Tensor) -> tuple[StorageMember, memoryview]:
    """One tensor by itself: how it is described, and its bytes."""
    span = span_of(name, tensor)
    return span.member, memory_of([span])


@dataclass(frozen=True, slots=True)
class StorageGroup:
    """Tensors whose bytes overlap, in the order they were given."""

    spans: tuple[Span, ...]

    @property
    def start(self) -> int:
        return min(span.start for span in self.spans)

    @property
    def size_bytes(self) -> int:
        return max(span.end for span in self.spans) - self.start

    def members(self) -> list[StorageMember]:
        start = self.start
        return [
            StorageMember(s.name, s.start - start, s.member.dtype, s.member.shape, s.member.stride)
            for s in self.spans
        ]

    def memory(self) -> memoryview:
        return memory_of(self.spans)

    def is_aligned(self) -> bool:
        """Whether every member stays on a multiple of its element once the group begins on a boundary."""
        start = self.start
        return all((s.start - start) % s.tensor.element_size() == 0 for s in self.spans)


def group_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[list[StorageGroup], dict[str, str]]:
    """The storages to write, by first appearance, and the aliases among the names."""
    spans, aliases = _distinct([span_of(name, tensor) for name, tensor in tensors.items()])
    groups: list[StorageGroup] = []
    for members in _overlapping(spans):
        group = StorageGroup(tuple(members))
        groups += [group] if group.is_aligned() else [StorageGroup((span,)) for span in members]
    rank = {span.name: index for index, span in enumerate(spans)}
    return sorted(groups, key=lambda group: rank[group.spans[0].name]), aliases


def _distinct(spans: list[Span]) -> tuple[list[Span], dict[str, str]]:
    distinct: list[Span] = []
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for span in spans:
        # Tensors without bytes have no address to be told apart by; each stands for itself.
        known = first.setdefault(span.identity, span.name) if span.end > span.start else span.name
        if known == span.name:
            distinct.append(span)
        else:
            aliases[span.name] = known
    return distinct, aliases


def _overlapping(spans: list[Span]) -> list[list[Span]]:
    """Connected groups of overlapping spans, each group in the order given."""
    groups: list[list[int]] = []
    end = -1
    for index in sorted(range(len(spans)), key=lambda i: (spans[i].start, -spans[i].end)):
        span = spans[index]
        if groups and span.start < end and span.end > span.start:
            groups[-1].append(index)
        else:
            groups.append([index])
        end = max(end, span.end)
    return [[spans[index] for index in sorted(group)] for group in groups]

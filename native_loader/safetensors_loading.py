"""Loads plain safetensors as they lie on the disk, without a conversion first.

The files go into memory whole, by direct reads of several threads as for a checkpoint, the chunks of the
first layers before those of the last. The format has no checksums, so none are verified.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.domain.errors import FirstlightError, ManifestInvalid, SourceCorrupt
from native_loader._native import Arena, Segment
from native_loader.dtypes import BITS
from native_loader.execution_order import execution_order
from native_loader.loading import BoundTensors, Loading, LoadPlan
from native_loader.manifest import ARENA_ALIGNMENT_BYTES, CHUNK_BYTES, align_up
from native_loader.paths import StrPath
from native_loader.safetensors_layout import safetensors_files
from native_loader.safetensors_source import SourceTensor, read_header

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file and where in memory it begins."""

    path: Path
    size_bytes: int
    start: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor and the file it is in."""

    tensor: SourceTensor
    shard: int

    def chunks(self) -> list[tuple[int, int]]:
        """(shard, index) of every chunk with bytes of it."""
        if self.tensor.size_bytes == 0:
            return []
        first = self.tensor.offset // CHUNK_BYTES
        last = (self.tensor.offset + self.tensor.size_bytes - 1) // CHUNK_BYTES
        return [(self.shard, index) for index in range(first, last + 1)]


class SafetensorsModel(LoadPlan):
    """A file, or a directory of shards, whose headers are valid and name every tensor once.

    `tensors` are in execution order.
    """

    def __init__(self, source: StrPath) -> None:
        """Raises: SourceUnreachable, SourceUnsupported (pickle), SourceCorrupt."""
        self._shards: list[_Shard] = []
        placed: dict[str, _Placed] = {}
        end = 0
        for path in safetensors_files(Path(source)):
            header, size_bytes = read_header(path)
            for name, tensor in header.tensors.items():
                if name in placed:
                    raise SourceCorrupt(f"{name!r} stands in two shards of {source}", name=name)
                placed[name] = _Placed(tensor, len(self._shards))
            self._shards.append(_Shard(path, size_bytes, end))
            end = align_up(end + size_bytes, ARENA_ALIGNMENT_BYTES)
        self._memory_bytes = end
        self._placed = {name: placed[name] for name in execution_order(placed)}

    @property
    def tensors(self) -> dict[str, SourceTensor]:
        return {name: placed.tensor for name, placed in self._placed.items()}

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def begin(self, *, threads: int | None = None) -> Loading:
        """Start reading into private memory, and answer at once with the tensors bound over it."""
        return Loading(self, threads=threads)

    def segments(self) -> list[Segment]:
        return [
            Segment(
                path=os.fspath(self._shards[shard].path),
                file_offset=index * CHUNK_BYTES,
                length=self._length(shard, index),
                arena_offset=self._shards[shard].start + index * CHUNK_BYTES,
            )
            for shard, index in self._order()
        ]

    def prefix_bytes(self) -> dict[str, int]:
        done = 0
        done_after = {}
        for shard, index in self._order():
            done += self._length(shard, index)
            done_after[shard, index] = done
        return {
            name: max((done_after[chunk] for chunk in placed.chunks()), default=0)
            for name, placed in self._placed.items()
        }

    def bind(self, arena: Arena) -> BoundTensors:
        from native_loader.torch_binding import contiguous_tensor

        memory = arena.buffer()
        tensors: dict[str, torch.Tensor] = {}
        settle: dict[str, Callable[[], None]] = {}
        for name, placed in self._placed.items():
            tensor, start = placed.tensor, self._shards[placed.shard].start + placed.tensor.offset
            bind = partial(
                contiguous_tensor, size_bytes=tensor.size_bytes, dtype=tensor.dtype, shape=tensor.shape
            )
            if start % max(BITS[tensor.dtype] // 8, 1) == 0 or tensor.size_bytes == 0:
                tensors[name] = bind(memory, offset=start)
                continue
            # The format asks for no alignment; the few tensors that lack it move to where they have it.
            aligned = memoryview(bytearray(tensor.size_bytes))
            tensors[name] = bind(aligned, offset=0)
            settle[name] = partial(_copy, memory[start : start + tensor.size_bytes], aligned)
        return BoundTensors(tensors, settle)

    def explain(self, failure: FirstlightError) -> FirstlightError:
        if isinstance(failure, ManifestInvalid):  # the core's word for a file cut short under a load
            return SourceCorrupt(failure.message, **failure.fields)
        return failure

    def _order(self) -> list[tuple[int, int]]:
        """Chunks as the tensors need them; those that hold headers alone, or nothing, at the end."""
        order = dict.fromkeys(chunk for placed in self._placed.values() for chunk in placed.chunks())
        return list(order)

    def _length(self, shard: int, index: int) -> int:
        return min(CHUNK_BYTES, self._shards[shard].size_bytes - index * CHUNK_BYTES)


def _copy(source: memoryview, target: memoryview) -> None:
    target[:] = source


def open_safetensors(source: StrPath) -> SafetensorsModel:
    """Raises: SourceUnreachable, SourceUnsupported (no safetensors; pickle is refused), SourceCorrupt."""
    return SafetensorsModel(source)


def load_safetensors(source: StrPath, *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a model directory or a file, in private writable memory, in execution order.

    Raises: SourceUnreachable, SourceUnsupported, SourceCorrupt, ReadFailed, PoolFull, AttachFailed.
    """
    return open_safetensors(source).begin(threads=threads).result()

"""Parameters made before their memory is known, so that an attach has only to point each at its bytes.

Making hundreds of tensors and parameters takes longer than all else between a pin and a bound model; what is
done ahead of need costs a warm start nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from firstlight.domain.errors import AttachFailed
from native_loader import Manifest
from native_loader.dtypes import BITS, is_packed, torch_dtype
from native_loader.torch_binding import no_warning_about_read_only


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor will be; `offset` counts its own elements from the partition's begin."""

    tensor: torch.Tensor
    partition: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class BoundAhead:
    """Empty tensors for every name of a manifest; `fill` gives all of them their memory.

    Tied names share one tensor. All of a partition share one storage, unlike those of `Checkpoint.bind`.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._sizes = [partition.size_bytes for partition in manifest.partitions]
        self._places = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for entry in manifest.tensors:
            empty = torch.empty(0, dtype=torch_dtype(entry.dtype))
            tensor = torch.nn.Parameter(empty, requires_grad=False)
            offset = entry.offset // (BITS[entry.dtype] // 8)
            self._places.append(Place(tensor, entry.partition, offset, entry.shape, entry.stride))
            self.tensors[entry.name] = tensor
            self.shapes[entry.name] = entry.shape
        for alias, target in manifest.aliases.items():
            self.tensors[alias], self.shapes[alias] = self.tensors[target], self.shapes[target]
        self.size_bytes = sum(entry.size_bytes for entry in manifest.tensors)
        self._rehearse()

    @staticmethod
    def can_hold(manifest: Manifest) -> bool:
        """Elements of less than a byte have another shape in torch than in the manifest."""
        return not any(is_packed(entry.dtype) for entry in manifest.tensors)

    def fill(self, buffers: Sequence[memoryview]) -> None:
        """One buffer per partition, at least of its size; nothing is copied. Raises: AttachFailed."""
        if [buffer.nbytes for buffer in buffers] != self._sizes:
            raise AttachFailed(f"memory of {[one.nbytes for one in buffers]} bytes for {self._sizes}")
        self._point_at(buffers)

    def _point_at(self, buffers: Sequence[memoryview]) -> None:
        with no_warning_about_read_only():
            storages = [
                torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
                if buffer.nbytes
                else torch.empty(0).untyped_storage()
                for buffer in buffers
            ]
        with torch.no_grad():
            for place in self._places:
                place.tensor.set_(storages[place.partition], place.offset, place.shape, place.stride)

    def _rehearse(self) -> None:
        """Do once what an attach will do, over addresses without memory behind them; then be empty again.

        A process does everything more slowly the first time, and nothing may compute with what is not there.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        stand_ins = [mmap.mmap(-1, max(size, 1), flags=flags, prot=mmap.PROT_READ) for size in self._sizes]
        self._point_at([memoryview(one)[:size] for one, size in zip(stand_ins, self._sizes, strict=True)])
        nothing = torch.empty(0).untyped_storage()
        with torch.no_grad():
            for place in self._places:
                place.tensor.set_(nothing, 0, (0,), (1,))

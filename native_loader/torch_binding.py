"""Tensors over loaded memory, without a copy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from firstlight.domain.errors import InvalidInput
from native_loader.dtypes import BITS, is_packed, torch_dtype
from native_loader.manifest import Manifest, PartitionEntry
from native_loader.manifest_laws import contiguous_stride

if TYPE_CHECKING:
    import torch


def _storage(partition: PartitionEntry, buffer: memoryview) -> torch.UntypedStorage:
    import torch

    if buffer.nbytes < partition.size_bytes:
        raise InvalidInput(f"{partition.name} needs {partition.size_bytes} bytes, {buffer.nbytes} given")
    if partition.size_bytes == 0:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    with warnings.catch_warnings():
        # Torch warns that it cannot stop writes through a read-only buffer. Inference does not write.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch.uint8, count=partition.size_bytes).untyped_storage()


def bind_tensors(manifest: Manifest, buffers: Sequence[memoryview]) -> dict[str, torch.Tensor]:
    """Raises: InvalidInput if buffers are missing or too small, AttachFailed for a dtype torch lacks."""
    import torch

    if len(buffers) != len(manifest.partitions):
        raise InvalidInput(f"{len(manifest.partitions)} partitions, {len(buffers)} buffers")
    storages = [_storage(part, buffer) for part, buffer in zip(manifest.partitions, buffers, strict=True)]
    bound: dict[str, torch.Tensor] = {}
    for entry in manifest.tensors:
        shape, stride, item_bytes = entry.shape, entry.stride, BITS[entry.dtype] // 8
        dtype = torch_dtype(entry.dtype)
        if is_packed(entry.dtype):
            shape, item_bytes = (*shape[:-1], shape[-1] // 2), 1
            stride = contiguous_stride(shape)
        empty = torch.empty(0, dtype=dtype)
        bound[entry.name] = empty.set_(storages[entry.partition], entry.offset // item_bytes, shape, stride)
    for alias, target in manifest.aliases.items():
        bound[alias] = bound[target]
    return bound

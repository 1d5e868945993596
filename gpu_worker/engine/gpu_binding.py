"""Tensors over a checkpoint's partitions as they lie in GPU memory; nothing is copied or computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from native_loader import GpuMemory, Manifest, TensorEntry
from native_loader.dtypes import BITS, is_packed, torch_dtype
from native_loader.manifest_laws import contiguous_stride

# Bytes (n,) of one GPU memory as torch sees them.
AsBytes = Callable[[GpuMemory], torch.Tensor]


def bytes_on_gpu(memory: GpuMemory) -> torch.Tensor:
    """The memory as uint8 (size_bytes,) on its GPU; the tensor, and every view of it, keeps it alive."""
    # The device is asked of the pointer. torch never frees it: it is not of its own allocator.
    return torch.as_tensor(memory, device=f"cuda:{memory.device_index}")


def tensors_on_gpu(manifest: Manifest, blocks: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor and alias in the checkpoint's own layout, over one block of bytes a partition.

    The bytes need not be there yet. An alias is the very same tensor object. Raises: AttachFailed for a dtype
    torch lacks.
    """
    storages = [block.untyped_storage() for block in blocks]
    bound = {
        entry.name: _strided(storages[entry.partition], entry, blocks[entry.partition].device)
        for entry in manifest.tensors
    }
    return bound | {alias: bound[target] for alias, target in manifest.aliases.items()}


def _strided(storage: torch.UntypedStorage, entry: TensorEntry, device: torch.device) -> torch.Tensor:
    shape, stride = entry.shape, entry.stride
    if is_packed(entry.dtype):
        shape = (*shape[:-1], shape[-1] // 2)
        stride = contiguous_stride(shape)
    item_bytes = max(BITS[entry.dtype] // 8, 1)
    empty = torch.empty(0, dtype=torch_dtype(entry.dtype), device=device)
    # Tensors start on 256 bytes of a partition, and partitions on 2 MiB of the device: always aligned.
    return empty.set_(storage, entry.offset // item_bytes, shape, stride)

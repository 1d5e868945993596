"""From a pinned extent of the arena to tensors a model can be bound to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from gpu_worker.engine.store_link import Pinned
from native_loader import ArenaView, Checkpoint, open_checkpoint

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def dtype_of(checkpoint: Checkpoint) -> torch.dtype:
    """What the model computes in: the type most of its bytes have."""
    return DTYPES.get(checkpoint.manifest.dtype, torch.float32)


def open_at(directory: Path) -> Checkpoint:
    """Raises: CheckpointMissing, ManifestInvalid, ReadFailed."""
    return open_checkpoint(directory)


def tensors_in_arena(checkpoint: Checkpoint, pinned: Pinned, view: ArenaView) -> dict[str, torch.Tensor]:
    """Tensors over the store's memory; nothing is copied, and nothing may be written."""
    return checkpoint.bind([view.buffer(offset, size_bytes) for offset, size_bytes in pinned.extents])


def on_device(tensors: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    """On a GPU: copies of the raw bytes, tied names sharing one. On the CPU the tensors themselves."""
    if device == "cpu":
        return dict(tensors)
    copies: dict[int, torch.Tensor] = {}
    moved = {}
    for name, tensor in tensors.items():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.to(device)
        moved[name] = copies[id(tensor)]
    torch.cuda.synchronize(device)
    return moved

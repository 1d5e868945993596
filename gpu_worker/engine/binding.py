"""From a pinned extent of the arena to tensors a model can be bound to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpu_worker.engine.bound_ahead import BoundAhead
from gpu_worker.engine.store_link import Pinned
from native_loader import ArenaView, Checkpoint, parse_manifest
from native_loader.manifest import MANIFEST_NAME
from native_loader.reader import LARGEST_MANIFEST_BYTES
from native_loader.regular_file import read_regular

if TYPE_CHECKING:
    from gpu_worker.engine.skeleton import Skeleton

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def dtype_of(checkpoint: Checkpoint) -> torch.dtype:
    """What the model computes in: the type most of its bytes have."""
    return DTYPES.get(checkpoint.manifest.dtype, torch.float32)


def open_at(directory: Path) -> Checkpoint:
    """A checkpoint to be bound to the store's memory; its own partition files may still be written.

    Raises: CheckpointMissing, ManifestInvalid, ReadFailed.
    """
    text = read_regular(directory / MANIFEST_NAME, limit_bytes=LARGEST_MANIFEST_BYTES)
    return Checkpoint(directory, parse_manifest(text))


def tensors_in_arena(checkpoint: Checkpoint, pinned: Pinned, view: ArenaView) -> dict[str, torch.Tensor]:
    """Tensors over the store's memory; nothing is copied, and nothing may be written."""
    return checkpoint.bind(buffers_in_arena(pinned, view))


def buffers_in_arena(pinned: Pinned, view: ArenaView) -> list[memoryview]:
    """The partitions' bytes in the store's memory."""
    return [view.buffer(offset, size_bytes) for offset, size_bytes in pinned.extents]


def bind_ahead(skeleton: Skeleton, checkpoint: Checkpoint) -> BoundAhead | None:
    """Bind what can be before the memory is known; None where tensors must be made of the memory itself.

    Raises: AttachFailed.
    """
    if not BoundAhead.can_hold(checkpoint.manifest):
        return None
    ahead = BoundAhead(checkpoint.manifest)
    skeleton.bind_ahead(ahead)
    return ahead

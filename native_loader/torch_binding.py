"""Tensors over loaded memory, without a copy.

Each tensor gets a torch storage of its own extent, so that saving or sharing one does not drag the whole
partition along. Tensors that overlap in the checkpoint share one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from firstlight.domain.errors import InvalidInput
from native_loader.dtypes import BITS, is_packed, torch_dtype
from native_loader.manifest import Manifest, TensorEntry
from native_loader.manifest_laws import contiguous_stride

if TYPE_CHECKING:
    import torch


@contextmanager
def no_warning_about_read_only() -> Iterator[None]:
    """Torch warns that it cannot stop writes through a read-only buffer. Inference does not write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        yield


def contiguous_tensor(
    buffer: memoryview, *, offset: int, size_bytes: int, dtype: str, shape: tuple[int, ...]
) -> torch.Tensor:
    """A tensor over `size_bytes` of the buffer; `offset` must be a multiple of its element.

    Raises: AttachFailed for a dtype torch lacks.
    """
    import torch

    kind = torch_dtype(dtype)
    item_bytes = max(BITS[dtype] // 8, 1)
    if is_packed(dtype):
        shape = (*shape[:-1], shape[-1] // 2)
    if size_bytes == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind, count=size_bytes // item_bytes, offset=offset).reshape(shape)


def bind_tensors(manifest: Manifest, buffers: Sequence[memoryview]) -> dict[str, torch.Tensor]:
    """Raises: InvalidInput if buffers are missing or too small, AttachFailed for a dtype torch lacks."""
    import torch

    _check_buffers(manifest, buffers)
    shared = _shared_extents(manifest)
    storages: dict[str, torch.UntypedStorage] = {}
    bound: dict[str, torch.Tensor] = {}
    # A warm start waits for this loop, hundreds of tensors long: nothing is looked up twice in it.
    kinds = {
        dtype: (torch_dtype(dtype), BITS[dtype] // 8) for dtype in {one.dtype for one in manifest.tensors}
    }
    frombuffer = torch.frombuffer
    with no_warning_about_read_only():
        for entry in manifest.tensors:
            root = entry.shares or entry.name
            kind, item_bytes = kinds[entry.dtype]
            if root not in shared and entry.size_bytes and item_bytes:
                tensor = frombuffer(
                    buffers[entry.partition],
                    dtype=kind,
                    count=entry.size_bytes // item_bytes,
                    offset=entry.offset,
                )
                # In place: a view would be a second tensor, and twice the time.
                bound[entry.name] = tensor.as_strided_(entry.shape, entry.stride)
                continue
            start, end = shared.get(root, (entry.offset, entry.offset + entry.size_bytes))
            if root not in storages:
                storages[root] = _storage(buffers[entry.partition], start, end)
            bound[entry.name] = _strided(storages[root], start, entry)
    for alias, target in manifest.aliases.items():
        bound[alias] = bound[target]
    return bound


def _check_buffers(manifest: Manifest, buffers: Sequence[memoryview]) -> None:
    if len(buffers) != len(manifest.partitions):
        raise InvalidInput(f"{len(manifest.partitions)} partitions, {len(buffers)} buffers")
    for partition, buffer in zip(manifest.partitions, buffers, strict=True):
        if buffer.nbytes < partition.size_bytes:
            raise InvalidInput(f"{partition.name} needs {partition.size_bytes} bytes, {buffer.nbytes} given")


def _shared_extents(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """First and last byte of every storage that several tensors have, by the name of its first tensor."""
    roots = {entry.shares for entry in manifest.tensors if entry.shares is not None}
    extents: dict[str, tuple[int, int]] = {}
    if not roots:
        return extents
    for entry in manifest.tensors:
        root = entry.shares or entry.name
        if root not in roots:
            continue
        start, end = extents.get(root, (entry.offset, entry.offset))
        extents[root] = (min(start, entry.offset), max(end, entry.offset + entry.size_bytes))
    return extents


def _storage(buffer: memoryview, start: int, end: int) -> torch.UntypedStorage:
    import torch

    if start == end:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(buffer, dtype=torch.uint8, count=end - start, offset=start).untyped_storage()


def _strided(storage: torch.UntypedStorage, start: int, entry: TensorEntry) -> torch.Tensor:
    import torch

    shape, stride = entry.shape, entry.stride
    item_bytes = max(BITS[entry.dtype] // 8, 1)
    if is_packed(entry.dtype):
        shape = (*shape[:-1], shape[-1] // 2)
        stride = contiguous_stride(shape)
    empty = torch.empty(0, dtype=torch_dtype(entry.dtype))
    return empty.set_(storage, (entry.offset - start) // item_bytes, shape, stride)

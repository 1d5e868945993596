"""Loads plain safetensors as they lie on the disk, without a conversion first.

The files go into memory whole, direct reads and several threads as for a checkpoint; the format has no
checksums, so none are verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.domain.errors import SourceCorrupt
from native_loader._native import Arena, LoadJob, Segment
from native_loader.dtypes import BITS, is_packed, torch_dtype
from native_loader.manifest import ARENA_ALIGNMENT_BYTES, CHUNK_BYTES, align_up
from native_loader.safetensors_source import SafetensorsFile, SourceTensor
from native_loader.standalone import safetensors_files

if TYPE_CHECKING:
    import torch


def load_safetensors(source: Path, *, threads: int = 4) -> dict[str, torch.Tensor]:
    """All tensors of a model directory or a file, in private writable memory.

    Raises: SourceUnreachable, SourceUnsupported, SourceCorrupt, ReadFailed, PoolFull, AttachFailed.
    """
    tensors: list[tuple[SourceTensor, int]] = []
    segments: list[Segment] = []
    end = 0
    for path in safetensors_files(source):
        with SafetensorsFile(path) as file:
            tensors += [(tensor, end) for tensor in file.tensors.values()]
        size_bytes = path.stat().st_size
        segments += _segments(path, size_bytes=size_bytes, arena_offset=end)
        end = align_up(end + size_bytes, ARENA_ALIGNMENT_BYTES)
    if len({tensor.name for tensor, _ in tensors}) != len(tensors):
        raise SourceCorrupt(f"a tensor stands in two shards of {source}", path=str(source))
    with Arena(end, kind="anonymous") as arena:
        LoadJob(arena, segments, threads=threads, populate=True).result()
        return {tensor.name: _bound(arena, tensor, start) for tensor, start in tensors}


def _segments(path: Path, *, size_bytes: int, arena_offset: int) -> list[Segment]:
    return [
        Segment(
            path=str(path),
            file_offset=at,
            length=min(CHUNK_BYTES, size_bytes - at),
            arena_offset=arena_offset + at,
        )
        for at in range(0, size_bytes, CHUNK_BYTES)
    ]


def _bound(arena: Arena, tensor: SourceTensor, file_start: int) -> torch.Tensor:
    import torch

    dtype, shape = torch_dtype(tensor.dtype), tensor.shape
    if is_packed(tensor.dtype):
        shape = (*shape[:-1], shape[-1] // 2)
    if tensor.size_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    offset = file_start + tensor.offset
    data = torch.frombuffer(arena.buffer(offset, tensor.size_bytes), dtype=torch.uint8)
    # The format asks for no alignment; the few tensors that lack it are copied to where they have it.
    is_aligned = offset % max(BITS[tensor.dtype] // 8, 1) == 0
    return (data if is_aligned else data.clone()).view(dtype).reshape(shape)

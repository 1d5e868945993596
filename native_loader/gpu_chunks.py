"""A checkpoint's chunks on their way from host memory to GPUs, in the order in which a load reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from native_loader._native import GpuChunk
from native_loader.load_order import chunks_in_order


@dataclass(frozen=True, slots=True)
class GpuChunks:
    """`lengths` are for the progress board that all partitions' jobs share; `of_partition` one list a job."""

    lengths: list[int]
    of_partition: list[list[GpuChunk]]


def gpu_chunks(
    partition_bytes: Sequence[int], source_offsets: Sequence[int], *, chunk_bytes: int
) -> GpuChunks:
    """Partition i from `source_offsets[i]` of the source to the beginning of a GPU memory of its own."""
    lengths: list[int] = []
    of_partition: list[list[GpuChunk]] = [[] for _ in partition_bytes]
    end = 0
    for index, chunk in enumerate(chunks_in_order(partition_bytes, chunk_bytes)):
        end += chunk.length
        lengths.append(chunk.length)
        of_partition[chunk.partition].append(
            GpuChunk(
                source_offset=source_offsets[chunk.partition] + chunk.start,
                device_offset=chunk.start,
                length=chunk.length,
                index=index,
                source_prefix_bytes=end,
            )
        )
    return GpuChunks(lengths, of_partition)

"""A checkpoint's chunks on their way from host memory to GPUs, in the order in which a load reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from native_loader._native import GpuChunk
from native_loader.load_order import Chunk, chunks_in_order


@dataclass(frozen=True, slots=True)
class GpuChunks:
    """`lengths` are for the progress board that all partitions' jobs share; `of_partition` one list a job."""

    lengths: list[int]
    of_partition: list[list[GpuChunk]]


def gpu_chunks(
    partition_bytes: Sequence[int], source_offsets: Sequence[int], *, chunk_bytes: int
) -> GpuChunks:
    """Partition i from `source_offsets[i]` of the source to the beginning of a GPU memory of its own."""
    return _chunks(
        partition_bytes, chunk_bytes, lambda _, chunk: source_offsets[chunk.partition] + chunk.start
    )


def gpu_chunks_of_ring(
    partition_bytes: Sequence[int], *, offset: int, slots: int, slot_bytes: int, chunk_bytes: int
) -> GpuChunks:
    """The same from a ring at `offset` of the source, in which chunk i comes to slot i modulo `slots`."""
    return _chunks(partition_bytes, chunk_bytes, lambda index, _: offset + index % slots * slot_bytes)


def _chunks(
    partition_bytes: Sequence[int], chunk_bytes: int, source_of: Callable[[int, Chunk], int]
) -> GpuChunks:
    lengths: list[int] = []
    of_partition: list[list[GpuChunk]] = [[] for _ in partition_bytes]
    end = 0
    for index, chunk in enumerate(chunks_in_order(partition_bytes, chunk_bytes)):
        end += chunk.length
        lengths.append(chunk.length)
        of_partition[chunk.partition].append(
            GpuChunk(
                source_offset=source_of(index, chunk),
                device_offset=chunk.start,
                length=chunk.length,
                index=index,
                source_prefix_bytes=end,
            )
        )
    return GpuChunks(lengths, of_partition)

"""The order in which a load reads chunks, and how far along it each tensor is there.

Chunk 0 of every partition, then chunk 1 of each, and so on: the ranks of a model that is split over devices
advance together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `start` to `start + length` of a partition; `index` counts chunks within it."""

    partition: int
    index: int
    start: int
    length: int


def chunks_in_order(partition_bytes: Sequence[int], chunk_bytes: int) -> list[Chunk]:
    """Every chunk of partitions of these sizes, as a load reads them."""
    found = [
        (start // chunk_bytes, partition, start, min(chunk_bytes, size_bytes - start))
        for partition, size_bytes in enumerate(partition_bytes)
        for start in range(0, size_bytes, chunk_bytes)
    ]
    return [Chunk(partition, index, start, length) for index, partition, start, length in sorted(found)]


class PrefixTable:
    """How many bytes of a load must be there before a given byte of a partition is."""

    def __init__(self, partition_bytes: Sequence[int], chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._done_after: list[list[int]] = [[] for _ in partition_bytes]
        done = 0
        for chunk in chunks_in_order(partition_bytes, chunk_bytes):
            done += chunk.length
            self._done_after[chunk.partition].append(done)

    def bytes_for(self, *, partition: int, offset: int, size_bytes: int) -> int:
        """`wait_prefix` of this many bytes has this range; 0 for an empty one."""
        if size_bytes == 0:
            return 0
        return self._done_after[partition][(offset + size_bytes - 1) // self._chunk_bytes]

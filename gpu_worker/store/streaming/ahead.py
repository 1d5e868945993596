"""Bytes that are on their way before the plan is there: what surely comes first, the embedding and on.

The order is guessed from the tensors' names; a wrong guess costs its bytes, never correctness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.domain.errors import SourceCorrupt
from gpu_worker.store.sources import Source, SourceDescription, SourceFile
from gpu_worker.store.streaming.headers import weight_files
from native_loader.execution_order import execution_order
from native_loader.safetensors_source import SafetensorsFile, SourceTensor

BLOCK_BYTES = 2**20
# Held in memory until the plan says where they go.
MOST_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class _Block:
    file: str
    start: int
    end: int
    data: asyncio.Task[memoryview]


class ReadAhead:
    """Reads on until `stop`. `seams` are the borders that later requests must respect to find its blocks."""

    def __init__(self, source: Source, description: SourceDescription, *, parallelism: int) -> None:
        self._source = source
        self._files = {file.name: file for file in description.files}
        self._weights = weight_files(description)
        self._parallelism = parallelism
        self._blocks: dict[tuple[str, int], _Block] = {}
        self._starts: dict[str, list[int]] = {}
        self._running: asyncio.Task[None] | None = None

    def start(self, headers: Path) -> None:
        """`headers` holds the weight files, their headers at least."""
        self._running = asyncio.get_running_loop().create_task(self._run(headers))

    async def stop(self) -> None:
        """Ask for nothing more; what is under way still comes."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def drop(self) -> None:
        """Give up what has not been taken."""
        for block in self._blocks.values():
            block.data.cancel()
        self._blocks.clear()

    @property
    def seams(self) -> frozenset[tuple[str, int]]:
        return frozenset(
            border
            for block in self._blocks.values()
            for border in ((block.file, block.start), (block.file, block.end))
        )

    async def take(self, file: SourceFile, start: int, size_bytes: int) -> memoryview | None:
        """These bytes if one of its blocks has them; the block is let go of with its last byte."""
        found = next(
            (
                block
                for block in self._blocks.values()
                if block.file == file.name and block.start <= start and start + size_bytes <= block.end
            ),
            None,
        )
        if found is None:
            return None
        data = (await found.data)[start - found.start : start - found.start + size_bytes]
        if start + size_bytes == found.end:
            self._blocks.pop((found.file, found.start), None)
        return data

    async def _run(self, headers: Path) -> None:
        under_way: set[asyncio.Task[memoryview]] = set()
        total = 0
        for file, start, size_bytes in self._guess(headers):
            if (total := total + size_bytes) > MOST_BYTES:
                return
            if len(under_way) >= self._parallelism:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            reading = self._source.read_range(self._files[file], start=start, size_bytes=size_bytes)
            task = asyncio.ensure_future(reading)
            # A failure is met again when the bytes are asked for.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._blocks[file, start] = _Block(file, start, start + size_bytes, task)
            under_way.add(task)

    def _guess(self, headers: Path) -> Iterator[tuple[str, int, int]]:
        tensors: dict[str, tuple[str, SourceTensor]] = {}
        for weights in self._weights:
            try:
                with SafetensorsFile(headers / weights.name) as shard:
                    tensors |= {name: (weights.name, tensor) for name, tensor in shard.tensors.items()}
            except SourceCorrupt:
                return
        yield from _blocks([tensors[name] for name in execution_order(tensors)])


def _blocks(tensors: Sequence[tuple[str, SourceTensor]]) -> Iterator[tuple[str, int, int]]:
    for file, tensor in tensors:
        end = tensor.offset + tensor.size_bytes
        for start in range(tensor.offset, end, BLOCK_BYTES):
            yield file, start, min(BLOCK_BYTES, end - start)

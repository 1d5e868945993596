"""Bytes that are on their way before the plan is there: what surely comes first, the embedding and on.

The order is guessed from the tensors' names; a wrong guess costs its bytes, never correctness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from firstlight.domain.errors import SourceCorrupt
from gpu_worker.store.sources import Source, SourceDescription, SourceFile
from gpu_worker.store.streaming.headers import weight_files
from native_loader.execution_order import execution_order
from native_loader.safetensors_source import SafetensorsFile, SourceTensor

BLOCK_BYTES = 2**20
# Held in memory until the plan says where they go.
MOST_BYTES = 512 * 2**20
# Of what was asked for before the plan: as long as it takes to put that in its place, the link brings this.
LAST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class _Block:
    file: str
    start: int
    end: int
    data: asyncio.Task[memoryview]


class ReadAhead:
    """Reads on until `wind_up` or `stop`.

    `seams` are the borders that later requests must respect to find its blocks.
    """

    def __init__(self, source: Source, description: SourceDescription, *, parallelism: int) -> None:
        self._source = source
        self._files = {file.name: file for file in description.files}
        self._weights = weight_files(description)
        self._parallelism = parallelism
        self._blocks: dict[tuple[str, int], _Block] = {}
        self._guesses: Iterator[tuple[str, int, int]] = iter(())
        self._asked = 0
        self._turns = asyncio.Semaphore(parallelism)
        self._running: asyncio.Task[None] | None = None

    def start(self, headers: Path) -> None:
        """`headers` holds the weight files, their headers at least."""
        self._guesses = self._guess(headers)
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ask for nothing more; what is under way still comes."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def wind_up(self) -> None:
        """Ask for a part as much again and for nothing more, as the plan's own requests begin.

        These first put in their places what is here, and meanwhile the link would stand still.
        """
        await self.stop()
        more = max(int(self._asked * LAST_SHARE), self._parallelism)
        for guess in islice(self._guesses, more if self._asked else 0):
            self._ask(*guess)

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

    async def _run(self) -> None:
        under_way: set[asyncio.Task[memoryview]] = set()
        for guess in self._guesses:
            under_way.add(self._ask(*guess))
            if len(under_way) >= self._parallelism:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    def _ask(self, file: str, start: int, size_bytes: int) -> asyncio.Task[memoryview]:
        self._asked += 1
        task = asyncio.get_running_loop().create_task(self._read(file, start, size_bytes))
        # A failure is met again when the bytes are asked for.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._blocks[file, start] = _Block(file, start, start + size_bytes, task)
        return task

    async def _read(self, file: str, start: int, size_bytes: int) -> memoryview:
        async with self._turns:
            return await self._source.read_range(self._files[file], start=start, size_bytes=size_bytes)

    def _guess(self, headers: Path) -> Iterator[tuple[str, int, int]]:
        tensors: dict[str, tuple[str, SourceTensor]] = {}
        for weights in self._weights:
            try:
                with SafetensorsFile(headers / weights.name) as shard:
                    tensors |= {name: (weights.name, tensor) for name, tensor in shard.tensors.items()}
            except SourceCorrupt:
                return
        total = 0
        for block in _blocks([tensors[name] for name in execution_order(tensors)]):
            if (total := total + block[2]) > MOST_BYTES:
                return
            yield block


def _blocks(tensors: Sequence[tuple[str, SourceTensor]]) -> Iterator[tuple[str, int, int]]:
    for file, tensor in tensors:
        end = tensor.offset + tensor.size_bytes
        for start in range(tensor.offset, end, BLOCK_BYTES):
            yield file, start, min(BLOCK_BYTES, end - start)

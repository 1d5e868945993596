"""What a plan is made from: a model's configuration, and its weight files as headers over holes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from firstlight.domain.errors import SourceCorrupt, SourceError
from gpu_worker.convert.gguf_header import header_end
from gpu_worker.convert.sentence_layout import MODULES, POOLING
from gpu_worker.store.sources import Source, SourceDescription, SourceFile
from native_loader.safetensors_source import LENGTH_BYTES, header_length

# Most headers are smaller: one request then brings all of it.
FIRST_READ_BYTES = 64 * 2**10
# Those of GGUF hold a vocabulary.
FIRST_GGUF_READ_BYTES = 2 * 2**20
PARALLEL_HEADERS = 16
# Before the plan, what decides about the layout; the rest is needed at the end only.
NEEDED_FIRST = ("config.json", "generation_config.json", "model.safetensors.index.json", MODULES, POOLING)


def weight_files(description: SourceDescription) -> tuple[SourceFile, ...]:
    return tuple(file for file in description.files if file.name.lower().endswith((".safetensors", ".gguf")))


def later_files(description: SourceDescription) -> tuple[SourceFile, ...]:
    """The small ones that no plan needs."""
    weights = set(weight_files(description))
    return tuple(file for file in description.files if file not in weights and file.name not in NEEDED_FIRST)


async def fetch_headers(source: Source, description: SourceDescription, folder: Path) -> None:
    """Fill `folder` with what a planner reads. Raises: SourceUnreachable, SourceCorrupt."""
    folder.mkdir(parents=True, exist_ok=True)
    first = [file for file in description.files if file.name in NEEDED_FIRST]
    turns = asyncio.Semaphore(PARALLEL_HEADERS)
    await _all(
        *(_in_turn(turns, partial(fetch_whole, source, file, folder)) for file in first),
        *(
            _in_turn(turns, partial(_header_of(file), source, file, folder))
            for file in weight_files(description)
        ),
    )


async def fetch_whole(source: Source, file: SourceFile, folder: Path) -> None:
    """One small file, as it is."""
    data = await source.read_range(file, start=0, size_bytes=file.size_bytes)
    await asyncio.to_thread(_write_whole, folder / file.name, data)


def _write_whole(path: Path, data: memoryview) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _header_of(file: SourceFile) -> Callable[[Source, SourceFile, Path], Awaitable[None]]:
    return _fetch_gguf_header if file.name.lower().endswith(".gguf") else _fetch_header


async def _fetch_gguf_header(source: Source, file: SourceFile, folder: Path) -> None:
    """Twice as much each time, until all of it is there."""
    begun, wanted = b"", FIRST_GGUF_READ_BYTES
    while True:
        more = min(wanted, file.size_bytes) - len(begun)
        begun += bytes(await source.read_range(file, start=len(begun), size_bytes=more))
        try:
            end = await asyncio.to_thread(header_end, begun)
        except SourceError as failure:
            raise type(failure)(f"{file.name}: {failure.message}") from failure
        if end is not None:
            break
        if len(begun) == file.size_bytes:
            raise SourceCorrupt(f"{file.name} ends within its header")
        wanted *= 2
    await asyncio.to_thread(_write_over_hole, folder / file.name, begun[:end], file.size_bytes)


async def _fetch_header(source: Source, file: SourceFile, folder: Path) -> None:
    if file.size_bytes < LENGTH_BYTES:
        raise SourceCorrupt(f"{file.name} is not a safetensors file: {file.size_bytes} bytes")
    size_bytes = min(FIRST_READ_BYTES, file.size_bytes)
    first = bytes(await source.read_range(file, start=0, size_bytes=size_bytes))
    try:
        end = LENGTH_BYTES + header_length(first, file_bytes=file.size_bytes)
    except SourceCorrupt as failure:
        raise SourceCorrupt(f"{file.name}: {failure.message}") from failure
    if end > size_bytes:
        first += bytes(await source.read_range(file, start=size_bytes, size_bytes=end - size_bytes))
    await asyncio.to_thread(_write_over_hole, folder / file.name, first[:end], file.size_bytes)


def _write_over_hole(path: Path, header: bytes, size_bytes: int) -> None:
    with path.open("wb") as opened:
        opened.write(header)
        os.ftruncate(opened.fileno(), size_bytes)


async def _in_turn(turns: asyncio.Semaphore, work: Callable[[], Awaitable[None]]) -> None:
    async with turns:
        await work()


async def _all(*work: Awaitable[None]) -> None:
    """Until all are done; the first failure ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

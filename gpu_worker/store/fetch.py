"""Fetch a described source into a staging folder: parallel ranged reads, resumed at a chunk."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.domain.errors import DiskFull, SourceUnreachable
from gpu_worker.store.fetch_journal import CHUNK_BYTES, FetchJournal
from gpu_worker.store.sources import Source, SourceDescription, SourceFile

log = logging.getLogger("store.fetch")

ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class _Chunk:
    file_index: int
    index: int
    start: int
    size_bytes: int


async def fetch(
    source: Source,
    description: SourceDescription,
    directory: Path,
    *,
    parallelism: int,
    on_bytes: Callable[[int], None],
) -> None:
    """Bring every file of `description` into `directory`; `on_bytes` is told of each chunk that is there.

    Raises: SourceUnreachable after ATTEMPTS at one chunk, SourceCorrupt, DiskFull. What was fetched stays.
    """
    with (
        FetchJournal(directory, revision=description.revision) as journal,
        _opened(description, directory) as descriptors,
    ):
        work = _Fetch(source, description.files, descriptors, journal, on_bytes)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallelism):
                    group.create_task(work.run())
        except ExceptionGroup as failures:
            raise _first(failures) from failures


class _Fetch:
    """The chunks that are missing, taken one by one by any number of `run`s."""

    def __init__(
        self,
        source: Source,
        files: tuple[SourceFile, ...],
        descriptors: list[int],
        journal: FetchJournal,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._source = source
        self._files = files
        self._descriptors = descriptors
        self._journal = journal
        self._on_bytes = on_bytes
        chunks = list(_chunks(files))
        there = {chunk for chunk in chunks if (chunk.file_index, chunk.index) in journal}
        self._missing = iter([chunk for chunk in chunks if chunk not in there])
        if there:
            log.info("fetch resumed chunks=%d of=%d", len(there), len(chunks))
        on_bytes(sum(chunk.size_bytes for chunk in there))

    async def run(self) -> None:
        for chunk in self._missing:
            data = await _read(self._source, self._files[chunk.file_index], chunk)
            await asyncio.to_thread(_write, self._descriptors[chunk.file_index], data, chunk.start)
            self._journal.record(chunk.file_index, chunk.index)
            self._on_bytes(chunk.size_bytes)


async def _read(source: Source, file: SourceFile, chunk: _Chunk) -> memoryview:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await source.read_range(file, start=chunk.start, size_bytes=chunk.size_bytes)
        except SourceUnreachable as failure:
            if attempt == ATTEMPTS:
                raise
            log.warning("fetch retry=%d file=%s chunk=%d: %s", attempt, file.name, chunk.index, failure)
            await asyncio.sleep(0.2 * 2**attempt)
    raise AssertionError("the loop returns or raises")


def _chunks(files: tuple[SourceFile, ...]) -> Iterator[_Chunk]:
    for file_index, file in enumerate(files):
        for index, start in enumerate(range(0, file.size_bytes, CHUNK_BYTES)):
            yield _Chunk(file_index, index, start, min(CHUNK_BYTES, file.size_bytes - start))


@contextmanager
def _opened(description: SourceDescription, directory: Path) -> Iterator[list[int]]:
    """One descriptor a file, open for writing, without following a link that stands in its place."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fds: list[int] = []
    try:
        for file in description.files:
            (directory / file.name).parent.mkdir(exist_ok=True)
            fds.append(os.open(directory / file.name, flags, 0o644))
            os.ftruncate(fds[-1], file.size_bytes)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _write(fd: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(fd, data, start)
        start += written
        data = data[written:]


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first cause of a group, a full disk in our own words."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, OSError) and first.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk filled up while a source was being fetched: {first.strerror}")
    assert isinstance(first, Exception)
    return first

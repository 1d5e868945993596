"""Chunks of a download on their way to the disk and back, by calls that do less than they were asked for."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from firstlight.domain.errors import DiskFull, StorageError
from gpu_worker.convert.stream_plan import StreamPlan
from gpu_worker.store.streaming.chunk_book import ChunkBook, ChunkEntry
from gpu_worker.store.streaming.partition_files import PartitionFiles
from native_loader.manifest import Manifest, PartitionEntry

CHUNK = 64 * 2**10
MANIFEST = Manifest(
    format_version=1,
    source="m",
    revision="r",
    dtype="F32",
    transformers_version=None,
    chunk_bytes=CHUNK,
    partitions=(PartitionEntry("partition-0.bin", 3 * CHUNK, (0, 0, 0)),),
    tensors=(),
    aliases=MappingProxyType({}),
    files=(),
    digest="",
)
# (descriptor, data or buffers, offset) -> bytes
Call = Callable[[int, object, int], int]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[PartitionFiles]:
    made = PartitionFiles(tmp_path, MANIFEST)
    yield made
    made.close()


@pytest.fixture
def entry() -> ChunkEntry:
    return ChunkBook(StreamPlan(MANIFEST, ())).entries[1]


def page_aligned(content: bytes = b"") -> memoryview:
    view = memoryview(mmap.mmap(-1, CHUNK))
    view[: len(content)] = content
    return view


def failing(real: Call, *, error: int, times: int = 1) -> Call:
    left = times

    def call(fd: int, data: object, at: int) -> int:
        nonlocal left
        if left:
            left -= 1
            raise OSError(error, os.strerror(error))
        return real(fd, data, at)

    return call


def test_short_writes_and_short_reads_are_continued(
    files: PartitionFiles, entry: ChunkEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(1).randbytes(CHUNK)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:4096], at))
    files.write(entry, page_aligned(content))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][:8192]], at))
    found = page_aligned()
    assert files.read(entry, found) and bytes(found) == content


@pytest.mark.parametrize(("error", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, StorageError)])
def test_a_device_that_fails_is_said(
    files: PartitionFiles,
    entry: ChunkEntry,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    kind: type[StorageError],
) -> None:
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, error=error))
    with pytest.raises(kind) as caught:
        files.write(entry, page_aligned())
    assert type(caught.value) is kind and caught.value.fields["errno"] == error


def test_direct_calls_that_are_refused_on_the_way_are_made_through_the_cache(
    files: PartitionFiles, entry: ChunkEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(2).randbytes(CHUNK)
    files._is_direct = True
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, error=errno.EINVAL))
    files.write(entry, page_aligned(content))
    found = page_aligned()
    assert files.read(entry, found) and bytes(found) == content


def test_what_cannot_be_read_back_does_not_count(
    files: PartitionFiles, entry: ChunkEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as damage:
        damage.setattr(os, "preadv", failing(os.preadv, error=errno.EIO))
        assert not files.read(entry, page_aligned())
    os.truncate(tmp_path / "partition-0.bin", CHUNK + 4096)
    assert not files.read(entry, page_aligned()), "it was cut short under us"

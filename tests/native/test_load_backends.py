"""One load, however it is read: by a ring or by threads, directly or through the page cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.domain.errors import InvalidInput
from native_loader import Arena, LoadJob, Segment, crc32c

MIB = 1 << 20
CONTENT = os.urandom(20 * MIB + 12345)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backends") / "partition-0.bin"
    path.write_bytes(CONTENT)
    return path


def segments_of(path: Path, *, is_wrong: bool = False) -> list[Segment]:
    return [
        Segment(
            path=str(path),
            file_offset=at,
            length=len(CONTENT[at : at + 3 * MIB]),
            arena_offset=at,
            crc32c=crc32c(CONTENT[at : at + 3 * MIB]) ^ is_wrong,
        )
        for at in range(0, len(CONTENT), 3 * MIB)
    ]


@pytest.mark.parametrize("backend", ["auto", "io_uring", "threads"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize(("queue_depth", "block_bytes"), [(1, MIB), (7, 4096 * 3), (64, 64 * MIB)])
def test_every_way_brings_every_byte(
    source: Path, backend: str, direct: bool, registered: bool, queue_depth: int, block_bytes: int
) -> None:
    with Arena(24 * MIB) as arena:
        job = LoadJob(
            arena,
            segments_of(source),
            backend=backend,
            direct=direct,
            registered=registered,
            queue_depth=queue_depth,
            block_bytes=block_bytes,
        )
        report = job.result(60)
        assert bytes(arena.buffer(0, len(CONTENT))) == CONTENT
        assert report.backend == job.backend
        assert backend == "auto" or report.backend == backend
        assert report.io_mode == "buffered" or direct
        assert 0 < report.checksum_seconds <= report.cpu_seconds


def test_without_verifying_nothing_is_summed(source: Path) -> None:
    with Arena(24 * MIB) as arena:
        report = LoadJob(arena, segments_of(source, is_wrong=True), verify=False).result(60)
        assert report.checksum_seconds == 0
        assert bytes(arena.buffer(0, len(CONTENT))) == CONTENT


@pytest.mark.parametrize(
    "nonsense", [{"block_bytes": 0}, {"block_bytes": 4097}, {"queue_depth": 0}, {"backend": "psychic"}]
)
def test_knobs_that_make_no_sense_are_refused(source: Path, nonsense: dict[str, int | str]) -> None:
    with Arena(24 * MIB) as arena, pytest.raises(InvalidInput):
        LoadJob(arena, segments_of(source), **nonsense)  # type: ignore[arg-type]


def test_urgent_segments_are_only_asked_for_if_they_exist(source: Path) -> None:
    with Arena(24 * MIB) as arena:
        job = LoadJob(arena, segments_of(source), queue_depth=1, block_bytes=64 << 10)
        job.prioritize(6)
        with pytest.raises(InvalidInput):
            job.prioritize(7)
        job.result(60)
        assert bytes(arena.buffer(0, len(CONTENT))) == CONTENT


def test_reading_through_the_page_cache_is_said_once() -> None:
    """/proc refuses direct reads. In a process of its own: what was said before is not said again."""
    program = """
import logging
from native_loader import Arena, LoadJob, Segment
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
with Arena(2 << 20) as arena:
    for direct in (False, True, True):
        segment = Segment(path="/proc/version", file_offset=0, length=5, arena_offset=0)
        assert LoadJob(arena, [segment], direct=direct).result(30).io_mode == "buffered"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("native_loader WARNING reading through the page cache") == 1
    assert "/proc/version" in done.stderr


def test_a_forked_child_that_exits_disturbs_nobody(source: Path) -> None:
    with Arena(24 * MIB) as arena:
        job = LoadJob(arena, segments_of(source) * 20, threads=1)
        child = os.fork()
        if child == 0:
            del job  # must not wait for threads that only the parent has
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert job.result(60).size_bytes == 20 * len(CONTENT)


def test_memory_that_may_not_be_registered_is_read_into_as_it_is(source: Path) -> None:
    """By a user who may lock 64 KiB and no more, as the kernel counts registered memory."""
    program = """
import ctypes, resource, sys
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
IPC_LOCK = 14
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capget(header, sets) == 0
for low in (0, 1, 2):
    sets[low] &= ~(1 << IPC_LOCK)
assert libc.capset(header, sets) == 0
from native_loader import Arena, LoadJob, Segment
with Arena(24 << 20, kind="anonymous") as arena:
    size = int(sys.argv[2])
    segment = Segment(path=sys.argv[1], file_offset=0, length=size, arena_offset=0)
    report = LoadJob(arena, [segment], registered=True).result(60)
    assert bytes(arena.buffer(0, size)) == open(sys.argv[1], "rb").read()
    print(report.backend)
"""
    command = [sys.executable, "-c", program, str(source), str(len(CONTENT))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with Arena(24 * MIB) as arena:
        usual = LoadJob(arena, segments_of(source)).result(60).backend
    assert (done.stdout.strip(), done.stderr) == (usual, ""), "it falls back without a word"

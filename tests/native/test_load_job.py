"""Reading files into an arena: every byte there, verified, in order, or a clear answer."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from firstlight.domain.errors import (
    Cancelled,
    CheckpointMissing,
    ChecksumMismatch,
    InvalidInput,
    ManifestInvalid,
)
from native_loader import Arena, LoadJob, Segment, crc32c

MIB = 1 << 20


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(24 * MIB)


@pytest.fixture(scope="module")
def source(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "partition-0.bin"
    path.write_bytes(content)
    return path


def segments_of(path: Path, content: bytes, *, chunk: int, shift: int = 0) -> list[Segment]:
    return [
        Segment(
            path=str(path),
            file_offset=at,
            length=len(content[at : at + chunk]),
            arena_offset=at + shift,
            crc32c=crc32c(content[at : at + chunk]),
        )
        for at in range(0, len(content), chunk)
    ]


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("direct", [True, False])
def test_every_byte_arrives(source: Path, content: bytes, threads: int, direct: bool) -> None:
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=5 * MIB), threads=threads, direct=direct)
        report = job.result(30)
        assert report.size_bytes == job.bytes_done == job.prefix_bytes == job.bytes_total == len(content)
        assert report.read_again == []
        assert direct or report.io_mode == "buffered"
        assert bytes(arena.buffer(0, len(content))) == content


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_it_says_when_its_first_read_began(source: Path, content: bytes, backend: str) -> None:
    before = time.time()
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=5 * MIB), backend=backend)
        job.result(30)
        after = time.time()
        assert job.first_read_at_unix_s is not None
        assert before - 0.01 <= job.first_read_at_unix_s <= after + 0.01, "but for the clocks' steps"
        empty = LoadJob(arena, [], backend=backend)
        empty.result(30)
        assert empty.first_read_at_unix_s is None


@pytest.mark.parametrize(("chunk", "shift"), [(999_999, 0), (MIB, 4096), (MIB, 17), (3 * MIB + 1, 1)])
def test_unaligned_ranges_arrive_too(source: Path, content: bytes, chunk: int, shift: int) -> None:
    with Arena(32 * MIB) as arena:
        LoadJob(arena, segments_of(source, content, chunk=chunk, shift=shift)).result(30)
        assert bytes(arena.buffer(shift, len(content))) == content
        rest = shift + len(content)
        assert bytes(arena.buffer(rest, 4096)) == bytes(4096), "a read went past its segment"


def test_a_file_system_without_direct_reads_is_read_buffered(content: bytes) -> None:
    """/proc refuses O_DIRECT; so do others."""
    path = Path("/proc/self/cmdline")
    expected = path.read_bytes()
    with Arena(2 * MIB) as arena:
        job = LoadJob(
            arena,
            [
                Segment(
                    path=str(path),
                    file_offset=0,
                    length=len(expected),
                    arena_offset=0,
                    crc32c=crc32c(expected),
                )
            ],
        )
        assert job.result(10).io_mode == "buffered"
        assert bytes(arena.buffer(0, len(expected))) == expected


def test_a_wrong_checksum_names_the_segment(source: Path, content: bytes) -> None:
    segments = segments_of(source, content, chunk=4 * MIB)
    wrong = segments[3]
    segments[3] = Segment(
        path=wrong.path,
        file_offset=wrong.file_offset,
        length=wrong.length,
        arena_offset=wrong.arena_offset,
        crc32c=(wrong.crc32c or 0) ^ 1,
    )
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments, threads=2)
        with pytest.raises(ChecksumMismatch) as caught:
            job.result(30)
        assert caught.value.fields["chunk"] == 3
        assert caught.value.fields["path"] == str(source)
        assert job.prefix_bytes <= 12 * MIB
        assert not job.wait_prefix(16 * MIB, 10), "a prefix with a bad chunk was given out"


def test_a_file_cut_short_is_out_of_file(source: Path, content: bytes) -> None:
    segments = segments_of(source, content, chunk=4 * MIB)
    beyond = Segment(path=str(source), file_offset=len(content), length=4096, arena_offset=0)
    with Arena(32 * MIB) as arena, pytest.raises(ManifestInvalid) as caught:
        LoadJob(arena, [*segments, beyond]).result(30)
    assert caught.value.rule == "out_of_file"


def test_a_missing_file_is_known_before_anything_starts(tmp_path: Path) -> None:
    with Arena(2 * MIB) as arena, pytest.raises(CheckpointMissing):
        LoadJob(arena, [Segment(path=str(tmp_path / "no"), file_offset=0, length=1, arena_offset=0)])


@pytest.mark.parametrize(("offset", "length"), [(0, 3 * MIB), (2 * MIB, 1), (2**64 - 1, 2), (0, 0)])
def test_segments_outside_of_the_arena_are_refused(source: Path, offset: int, length: int) -> None:
    with Arena(2 * MIB) as arena, pytest.raises(InvalidInput):
        LoadJob(arena, [Segment(path=str(source), file_offset=0, length=length, arena_offset=offset)])


def test_no_segments_is_done_at_once() -> None:
    with Arena(2 * MIB) as arena:
        assert LoadJob(arena, []).result(10).size_bytes == 0


def test_the_prefix_is_there_when_it_is_said_to_be(source: Path, content: bytes) -> None:
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=MIB), threads=3)
        for end in range(MIB, len(content) + 1, MIB):
            assert job.wait_prefix(end, 30)
            assert bytes(arena.buffer(end - MIB, MIB)) == content[end - MIB : end]
        assert job.result(10).size_bytes == len(content)


def test_cancel_stops_it(source: Path, content: bytes) -> None:
    """Enough single-threaded work that the cancellation comes long before its end."""
    segments = segments_of(source, content, chunk=MIB) * 200
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments, threads=1)
        assert job.wait_prefix(MIB, 30)
        job.cancel()
        assert job.wait(10)
        with pytest.raises(Cancelled):
            job.result()
        assert job.bytes_done < job.bytes_total


def test_closing_the_arena_does_not_pull_memory_from_under_a_load(source: Path, content: bytes) -> None:
    arena = Arena(32 * MIB)
    view = arena.buffer(0, len(content))
    job = LoadJob(arena, segments_of(source, content, chunk=MIB), threads=2)
    arena.close()
    job.result(30)
    assert bytes(view) == content


def test_dropping_a_running_job_ends_its_threads(source: Path, content: bytes) -> None:
    def thread_count() -> int:
        return len(os.listdir("/proc/self/task"))

    before = thread_count()
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=MIB) * 50, threads=4)
        assert thread_count() >= before + 1
        del job
        assert thread_count() == before


async def test_an_event_loop_is_woken_by_the_descriptor(source: Path, content: bytes) -> None:
    loop = asyncio.get_running_loop()
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=MIB))
        done = asyncio.Event()
        loop.add_reader(job.event_fd, done.set)
        try:
            await asyncio.wait_for(done.wait(), 30)
        finally:
            loop.remove_reader(job.event_fd)
        assert job.is_done
        assert job.result(0).size_bytes == len(content)


def test_waiting_lets_other_threads_run_and_keeps_its_time(tmp_path: Path) -> None:
    """Two GiB of holes: long enough to wait for, nothing on the disk."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2048 * MIB)
    segments = [
        Segment(path=str(path), file_offset=at * MIB, length=MIB, arena_offset=0) for at in range(2048)
    ]
    with Arena(2 * MIB) as arena:
        job = LoadJob(arena, segments, threads=1, direct=False)
        ticks = 0
        stop = threading.Event()

        def tick() -> None:
            nonlocal ticks
            while not stop.is_set():
                ticks += 1

        thread = threading.Thread(target=tick)
        thread.start()
        began = time.monotonic()
        was_done = job.wait(0.05)
        waited = time.monotonic() - began
        stop.set()
        thread.join()
        assert was_done or waited >= 0.05
        assert waited < 5
        assert ticks > 1000, "the interpreter stood still"
        job.cancel()
        assert job.wait(10)


def test_a_result_that_is_not_there_yet_is_a_timeout(source: Path, content: bytes) -> None:
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=MIB) * 100, threads=1)
        with pytest.raises(TimeoutError):
            job.result(0)
        job.cancel()


def test_populate_reads_into_memory_never_touched(source: Path, content: bytes) -> None:
    with Arena(32 * MIB, kind="anonymous") as arena:
        LoadJob(arena, segments_of(source, content, chunk=4 * MIB), populate=True).result(30)
        assert bytes(arena.buffer(0, len(content))) == content


def test_known_answers_of_the_checksum() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0
    data = os.urandom(100_003)
    assert crc32c(data[7:], crc32c(data[:7])) == crc32c(data)
    assert crc32c(memoryview(data)[1:]) == crc32c(data[1:])


def test_importing_the_loader_imports_no_torch() -> None:
    program = (
        "import sys, native_loader; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_a_load_that_is_paused_leaves_the_device_alone_until_it_goes_on(
    source: Path, content: bytes, backend: str
) -> None:
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=MIB), backend=backend, block_bytes=MIB)
        job.pause()
        # What is under way is few blocks, and comes or has come; then nothing moves.
        assert not job.wait(0.3) or job.bytes_done == len(content)
        held_at = job.bytes_done
        assert not job.wait(0.1) or held_at == len(content)
        assert job.bytes_done == held_at
        job.resume()
        assert job.result(30).size_bytes == len(content)
        assert bytes(arena.buffer(0, len(content))) == content


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_a_load_that_is_paused_can_be_stopped(source: Path, content: bytes, backend: str) -> None:
    with Arena(32 * MIB) as arena:
        job = LoadJob(arena, segments_of(source, content, chunk=MIB), backend=backend, block_bytes=MIB)
        job.pause()
        job.cancel()
        job.pause()
        assert job.wait(30)
        if job.bytes_done < len(content):
            with pytest.raises(Cancelled):
                job.result(0)
        # And one that nobody holds any more.
        job = LoadJob(arena, segments_of(source, content, chunk=MIB), backend=backend, block_bytes=MIB)
        job.pause()
        del job

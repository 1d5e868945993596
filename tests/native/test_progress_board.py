"""A board says which chunks are there, to threads and to other processes that only look."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.domain.errors import CheckpointMissing, ChecksumMismatch, InvalidInput
from native_loader import Arena, LoadJob, ProgressBoard, Segment, crc32c

MIB = 1 << 20


@pytest.fixture
def board() -> ProgressBoard:
    return ProgressBoard([10, 20, 30])


@pytest.fixture
def watcher(board: ProgressBoard) -> Iterator[ProgressBoard]:
    fd = board.read_only_fd()
    yield ProgressBoard.attach(fd)
    os.close(fd)


def test_a_watcher_sees_what_is_marked(board: ProgressBoard, watcher: ProgressBoard) -> None:
    assert (watcher.chunks, watcher.bytes_total, watcher.bytes_done, watcher.prefix_bytes) == (3, 60, 0, 0)
    board.mark_done(1)
    board.mark_done(1)
    assert (watcher.bytes_done, watcher.prefix_bytes, watcher.is_chunk_done(1)) == (20, 0, True)
    board.mark_done(0)
    assert watcher.prefix_bytes == 30
    assert watcher.wait_prefix(30) and watcher.wait_chunk(1) and not watcher.wait_chunk(2, 0.01)
    board.mark_done(2)
    assert watcher.is_ended and not watcher.has_failed and watcher.wait_prefix(60, 0)
    assert not watcher.wait_prefix(61), "more than there will ever be is not there, and not waited for"


def test_a_watcher_cannot_write(watcher: ProgressBoard) -> None:
    with pytest.raises(InvalidInput):
        watcher.mark_done(0)
    with pytest.raises(InvalidInput):
        watcher.fail()


def test_nonsense_is_refused(board: ProgressBoard) -> None:
    for call in (
        lambda: board.mark_done(3),
        lambda: board.is_chunk_done(3),
        lambda: board.wait_chunk(3, 0),
        lambda: ProgressBoard([1, 0]),
        lambda: ProgressBoard.attach(0),
    ):
        with pytest.raises(InvalidInput):
            call()


def test_the_board_stays_while_a_watcher_holds_it() -> None:
    board = ProgressBoard([1])
    fd = board.read_only_fd()
    watcher = ProgressBoard.attach(fd)
    os.close(fd)
    board.mark_done(0)
    del board
    assert watcher.is_ended


def test_another_process_is_woken_and_sleeps_meanwhile(board: ProgressBoard) -> None:
    fd = board.read_only_fd()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        watcher = ProgressBoard.attach(fd)
        os.write(writer, b"r")
        before = resource.getrusage(resource.RUSAGE_SELF)
        is_there = watcher.wait_prefix(60, 30)
        after = resource.getrusage(resource.RUSAGE_SELF)
        burned_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        os._exit(0 if is_there and watcher.bytes_done == 60 and burned_s < 0.1 else 1)
    assert os.read(reader, 1) == b"r"
    assert not board.wait_prefix(1, 0.3), "the time in which a spinning watcher would burn"
    for index in (2, 0, 1):
        board.mark_done(index)
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (fd, reader, writer):
        os.close(descriptor)


def test_failing_wakes_a_waiting_thread(board: ProgressBoard, watcher: ProgressBoard) -> None:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(watcher.wait_prefix(60)))
    thread.start()
    board.mark_done(0)
    board.fail()
    thread.join(30)
    assert answers == [False]
    assert watcher.has_failed and watcher.wait_prefix(10), "what is there stays there"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "partition-0.bin"
    path.write_bytes(os.urandom(8 * MIB))
    return path


def segments_of(path: Path) -> list[Segment]:
    content = path.read_bytes()
    return [
        Segment(
            path=str(path),
            file_offset=at,
            length=MIB,
            arena_offset=at,
            crc32c=crc32c(content[at : at + MIB]),
        )
        for at in range(0, len(content), MIB)
    ]


def test_a_load_marks_the_board_it_is_given(source: Path) -> None:
    board = ProgressBoard([MIB] * 8)
    with Arena(8 * MIB) as arena:
        job = LoadJob(arena, segments_of(source), board=board)
        for index in range(8):
            assert board.wait_chunk(index, 30)
        assert board.prefix_bytes == board.bytes_done == job.result(30).size_bytes == 8 * MIB
        assert board.is_ended and not board.has_failed


def test_a_load_that_fails_fails_its_board(source: Path, tmp_path: Path) -> None:
    segments = segments_of(source)
    content = bytearray(source.read_bytes())
    content[3 * MIB] ^= 1
    source.write_bytes(content)
    board = ProgressBoard([MIB] * 8)
    with Arena(8 * MIB) as arena:
        job = LoadJob(arena, segments, threads=1, board=board)
        assert not board.wait_chunk(3, 30)
        with pytest.raises(ChecksumMismatch):
            job.result(30)
        assert board.has_failed and board.prefix_bytes <= 3 * MIB
        unstarted = ProgressBoard([1])
        missing = Segment(path=str(tmp_path / "no"), file_offset=0, length=1, arena_offset=0)
        with pytest.raises(CheckpointMissing):
            LoadJob(arena, [missing], board=unstarted)
        assert unstarted.has_failed


def test_a_dropped_load_fails_its_board(source: Path) -> None:
    board = ProgressBoard([MIB] * 800)
    with Arena(8 * MIB) as arena:
        job = LoadJob(arena, segments_of(source) * 100, threads=1, board=board)
        assert board.wait_chunk(0, 30)
        del job
        assert board.has_failed and board.bytes_done < board.bytes_total


def test_a_board_of_other_segments_is_refused(source: Path) -> None:
    with Arena(8 * MIB) as arena, pytest.raises(InvalidInput):
        LoadJob(arena, segments_of(source), board=ProgressBoard([MIB] * 7))

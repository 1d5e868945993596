"""Memory that is handed to readers: who may write, what outlives what."""

from __future__ import annotations

import array
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstlight.domain.errors import InvalidInput, PoolFull
from native_loader import Arena, ArenaView

HUGE_PAGE = 2 << 20
SHARED_KINDS = ["auto", "memfd"]


@contextmanager
def descriptor(arena: Arena) -> Iterator[int]:
    fd = arena.read_only_fd()
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [*SHARED_KINDS, "anonymous"])
def test_size_is_rounded_to_huge_pages_and_memory_is_zero(kind: str) -> None:
    with Arena(HUGE_PAGE + 1, kind=kind) as arena:
        assert arena.size_bytes == 2 * HUGE_PAGE
        assert arena.kind in {"hugetlb", "tmpfs", "memfd", "anonymous"}
        arena.prefault(threads=2)
        assert bytes(arena.buffer()) == bytes(2 * HUGE_PAGE)


def test_unknown_kinds_and_senseless_sizes_are_refused() -> None:
    for size, kind in ((HUGE_PAGE, "floppy"), (0, "memfd"), (2**63, "memfd")):
        with pytest.raises(InvalidInput):
            Arena(size, kind=kind)


def test_huge_pages_that_are_not_reserved_are_pool_full() -> None:
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    with pytest.raises(PoolFull):
        Arena((free + 1) * HUGE_PAGE, kind="hugetlb")


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_view_sees_what_the_owner_writes_and_cannot_write(kind: str) -> None:
    with (
        Arena(HUGE_PAGE, kind=kind) as arena,
        descriptor(arena) as fd,
        ArenaView(fd, arena.size_bytes) as view,
    ):
        view.populate()
        seen = view.buffer(4096, 5)
        arena.write(4096, b"hello")
        assert bytes(seen) == b"hello"
        assert seen.readonly
        with pytest.raises(TypeError):
            seen[0] = 0


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_the_descriptor_cannot_be_mapped_or_written_for_writing(kind: str) -> None:
    with Arena(HUGE_PAGE, kind=kind) as arena, descriptor(arena) as fd:
        with pytest.raises(OSError, match=r"denied|permitted"):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        for attempt in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0)):
            with pytest.raises(OSError):
                attempt()


def test_a_memfd_cannot_be_reopened_for_writing_through_proc() -> None:
    """The seal holds even against a reader that asks the kernel for a new, writable descriptor."""
    with Arena(HUGE_PAGE, kind="memfd") as arena, descriptor(arena) as fd:
        writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(OSError):
                mmap.mmap(writable, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(OSError):
                os.ftruncate(writable, 0)
        finally:
            os.close(writable)


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_views_and_buffers_outlive_their_owner(kind: str) -> None:
    arena = Arena(HUGE_PAGE, kind=kind)
    arena.write(0, b"still here")
    fd, own = arena.read_only_fd(), arena.buffer(0, 10)
    arena.close()
    view = ArenaView(fd, HUGE_PAGE)
    os.close(fd)
    seen = view.buffer(0, 10)
    view.close()
    assert bytes(seen) == bytes(own) == b"still here"


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_another_process_reads_it_after_the_owner_died(kind: str) -> None:
    """The descriptor goes over a Unix socket; the owner ends before the reader maps."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    owner = os.fork()
    if owner == 0:
        arena = Arena(HUGE_PAGE, kind=kind)
        arena.write(HUGE_PAGE - 3, b"end")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [arena.read_only_fd()]))]
        theirs.sendmsg([b"x"], rights)
        os._exit(0)
    _, messages, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    assert os.waitpid(owner, 0)[1] == 0
    fd = int.from_bytes(messages[0][2][:4], sys.byteorder)
    with ArenaView(fd, HUGE_PAGE) as view:
        assert bytes(view.buffer(HUGE_PAGE - 3)) == b"end"
    os.close(fd)
    ours.close()
    theirs.close()


def test_ranges_outside_are_refused_not_mapped() -> None:
    with Arena(HUGE_PAGE) as arena, descriptor(arena) as fd, ArenaView(fd, HUGE_PAGE) as view:
        for offset, length in ((HUGE_PAGE + 1, None), (0, HUGE_PAGE + 1), (HUGE_PAGE - 1, 2), (1, 2**64 - 1)):
            with pytest.raises(InvalidInput):
                view.buffer(offset, length)
            with pytest.raises(InvalidInput):
                arena.buffer(offset, length)
        with pytest.raises(InvalidInput):
            arena.write(HUGE_PAGE - 1, b"xx")
        with pytest.raises(InvalidInput):
            ArenaView(fd, HUGE_PAGE + 4096)
        assert len(view.buffer(HUGE_PAGE, 0)) == 0


def test_closed_is_closed_and_closing_twice_is_fine() -> None:
    arena = Arena(HUGE_PAGE)
    arena.close()
    arena.close()
    with pytest.raises(InvalidInput):
        arena.buffer()
    with pytest.raises(InvalidInput):
        arena.read_only_fd()


def test_an_anonymous_arena_has_no_descriptor() -> None:
    with Arena(HUGE_PAGE, kind="anonymous") as arena, pytest.raises(InvalidInput):
        arena.read_only_fd()


def test_nothing_stays_behind() -> None:
    def state() -> tuple[int, str]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/mounts").read_text()

    def maps() -> str:
        return Path("/proc/self/maps").read_text()

    before = state()
    for kind in SHARED_KINDS:
        arena = Arena(HUGE_PAGE, kind=kind)
        os.close(arena.read_only_fd())
        del arena
    assert state() == before
    assert "firstlight-arena" not in maps()

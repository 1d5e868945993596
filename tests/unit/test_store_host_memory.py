"""A pool never takes memory that is not there, and says so; what it has stays."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from gpu_worker.store.host_memory import GRANULE_BYTES, MARGIN_BYTES, granted_bytes, lock

GIB = 2**30


@pytest.mark.parametrize(
    ("available", "huge_pages", "granted"),
    [
        (16 * GIB, 0, 8 * GIB),
        (8 * GIB + MARGIN_BYTES, 0, 8 * GIB),
        (5 * GIB + MARGIN_BYTES + 5, 0, 5 * GIB),
        (1 * GIB, 4096, 8 * GIB),
        (0, 0, GRANULE_BYTES),
    ],
)
def test_no_more_than_is_there(available: int, huge_pages: int, granted: int) -> None:
    figures = {"MemAvailable": available, "HugePages_Free": huge_pages, "Hugepagesize": 2 * 2**20}
    assert granted_bytes(8 * GIB, figures) == granted


def test_locked_pages_are_locked() -> None:
    memory = mmap.mmap(-1, GRANULE_BYTES)
    if not lock(memoryview(memory)):
        pytest.skip("this user may lock no memory")
    locked = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmLck" in line)
    assert int(locked.split()[1]) * 1024 >= GRANULE_BYTES

"""How fast the volume of a folder really reads: by the native loader, past the page cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

from native_loader import Arena, LoadJob, Segment

# Together well below a second on an NVMe, and bounded on what is slower.
PROBE_BYTES = 128 * 2**20
BLOCK_BYTES = 8 * 2**20
# Seldom enough to cost little, often enough to find a slow device out.
SYNC_BYTES = 32 * 2**20
WRITE_AT_MOST_S = 0.5
READ_AT_MOST_S = 0.5
PASSES = 3


class Disturbed(Exception):
    """Somebody needs the device: what would be measured is half of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """The best of a few passes; `io_mode` is direct, or buffered where the volume refuses direct reads."""

    bytes_per_s: float
    io_mode: str
    size_bytes: int
    passes: int
    took_s: float


def measure_reads(folder: Path, *, is_quiet: Callable[[], bool]) -> Reads:
    """Write a file into `folder`, read it a few times, remove it. Blocks for about a second at most.

    `is_quiet` is asked between blocks: at the first No it stops. Raises: Disturbed; OSError, StorageError.
    """
    began_s = time.monotonic()
    path = folder / ".probe"
    try:
        size_bytes = _write(path, is_quiet)
        with Arena(size_bytes, "anonymous") as arena:
            # Fresh pages would be what is measured.
            arena.prefault()
            best, passes, io_mode = _read(path, arena, size_bytes, is_quiet)
    finally:
        path.unlink(missing_ok=True)
    return Reads(
        bytes_per_s=best,
        io_mode=io_mode,
        size_bytes=size_bytes,
        passes=passes,
        took_s=time.monotonic() - began_s,
    )


def _write(path: Path, is_quiet: Callable[[], bool]) -> int:
    """As much as half a second allows, at least one block; all of it on the device."""
    until_s, written = time.monotonic() + WRITE_AT_MOST_S, 0
    block = os.urandom(BLOCK_BYTES)
    with path.open("wb") as file:
        while written < PROBE_BYTES and (written == 0 or time.monotonic() < until_s):
            if not is_quiet():
                raise Disturbed
            file.write(block)
            written += BLOCK_BYTES
            if written % SYNC_BYTES == 0:
                _sync(file)
        _sync(file)
    return written


def _sync(file: BufferedWriter) -> None:
    file.flush()
    os.fdatasync(file.fileno())


def _read(path: Path, arena: Arena, size_bytes: int, is_quiet: Callable[[], bool]) -> tuple[float, int, str]:
    segments = [
        Segment(path=str(path), file_offset=at, length=BLOCK_BYTES, arena_offset=at)
        for at in range(0, size_bytes, BLOCK_BYTES)
    ]
    until_s, best, passes, io_mode = time.monotonic() + READ_AT_MOST_S, 0.0, 0, ""
    while passes < PASSES and (passes == 0 or time.monotonic() < until_s):
        if not is_quiet():
            raise Disturbed
        # Where direct reads are refused, the cache must not answer in the device's place.
        _forget(path)
        report = LoadJob(arena, segments, direct=True, verify=False).result()
        # The quickest: what slows one down is somebody else, and the device is what is asked about.
        best = max(best, report.size_bytes / max(report.seconds, 1e-9))
        passes, io_mode = passes + 1, report.io_mode
    return best, passes, io_mode


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)

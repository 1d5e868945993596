"""How fast this host's SSD really reads: direct reads into memory that is there already.

The figure is what the estimator starts from. It is kept in the state directory, so a restart costs nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_worker.store.disk import write_atomically

log = logging.getLogger("store.probe")

PROBE_BYTES = 128 * 2**20
BLOCK_BYTES = 4 * 2**20
HUGE_PAGE_BYTES = 2 * 2**20
THREADS = 2
PASSES = 3


def ssd_read_bytes_per_s(*, ssd_root: Path, state_dir: Path) -> float:
    """The kept figure for this device, or a fresh measurement. Raises: OSError."""
    kept = state_dir / "probe.json"
    device = os.stat(ssd_root).st_dev
    try:
        record = json.loads(kept.read_text())
        if record["device"] == device:
            return float(record["read_bytes_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        log.info("no earlier probe of the SSD")
    measured, is_direct = measure(ssd_root)
    log.info("ssd read_bytes_per_s=%.3g direct=%s", measured, is_direct)
    record = {"device": device, "read_bytes_per_s": measured, "is_direct": is_direct}
    write_atomically(kept, json.dumps(record))
    return measured


def measure(directory: Path) -> tuple[float, bool]:
    """Write a file, put it out of the page cache, read it; (bytes a second, whether reads were direct)."""
    path = directory / ".probe"
    try:
        _write(path)
        fd, is_direct = _open_direct(path)
        try:
            # The fastest of a few: what slows one down is somebody else, and the device is what is measured.
            return PROBE_BYTES / min(_timed_read(fd) for _ in range(PASSES)), is_direct
        finally:
            os.close(fd)
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path) -> None:
    block = os.urandom(BLOCK_BYTES)
    with path.open("wb") as file:
        for _ in range(PROBE_BYTES // BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        # Only clean pages can be dropped, hence after the fsync.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _open_direct(path: Path) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT), True
    except OSError:
        return os.open(path, os.O_RDONLY), False


def _timed_read(fd: int) -> float:
    blocks = [_huge_block() for _ in range(THREADS)]

    def read(thread: int) -> None:
        for offset in range(thread * BLOCK_BYTES, PROBE_BYTES, THREADS * BLOCK_BYTES):
            os.preadv(fd, [blocks[thread]], offset)

    with ThreadPoolExecutor(THREADS) as threads:
        began = time.perf_counter()
        list(threads.map(read, range(THREADS)))
        return time.perf_counter() - began


def _huge_block() -> memoryview:
    """BLOCK_BYTES on a huge-page boundary, touched: fresh or scattered pages would be what is measured."""
    memory = mmap.mmap(-1, BLOCK_BYTES + HUGE_PAGE_BYTES)
    with contextlib.suppress(OSError):  # a kernel without huge pages reads into small ones, and slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE_BYTES
    block = memoryview(memory)[skip : skip + BLOCK_BYTES]
    block[:] = bytes(BLOCK_BYTES)
    return block

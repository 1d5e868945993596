"""What is left of a warm start when memory is wanted elsewhere and the kernel gives up its page cache.

Two ways to get there: `balloon`, a process that really fills the machine's memory, and `drop`, which puts
just these files out of the page cache, as pressure does, and disturbs nobody else.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import loader_page_cache as page_cache

# Below this the kernel starts to end processes; what it means to do is to give up its page cache.
FLOOR_BYTES = 1536 << 20
PIECE_BYTES = 256 << 20
KINDS = ("drop", "balloon")
PATIENCE_S = 300.0


class PressureFailed(RuntimeError):
    """The page cache outlived the pressure."""


@contextmanager
def pressure(kind: str, files: Sequence[Path]) -> Iterator[float]:
    """`files` are in the page cache before, and no longer inside. Yields the share that was left of them.

    With `balloon` the memory stays taken until the end of the block. Raises: PressureFailed.
    """
    page_cache.warm(files)
    if kind == "drop":
        page_cache.drop(files)
        yield page_cache.resident_share(files)
        return
    with _balloon():
        left = page_cache.resident_share(files)
        if left > 0.5:
            raise PressureFailed(f"{left:.0%} of the files stayed in the page cache under pressure")
        yield left


@contextmanager
def _balloon() -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.loader_pressure"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "full\n":
            raise PressureFailed("the balloon burst")
        yield
    finally:
        process.kill()
        process.wait()


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _inflate() -> None:
    """Touch memory until what is available reaches the floor; hold it until told to end."""
    # Of all processes this is the one to end, should memory run out after all.
    Path("/proc/self/oom_score_adj").write_text("1000")
    pieces = []
    while (spare := _available_bytes() - FLOOR_BYTES) > 0:
        piece = mmap.mmap(-1, min(PIECE_BYTES, max(spare, mmap.PAGESIZE)))
        for at in range(0, len(piece), mmap.PAGESIZE):
            piece[at] = 1
        pieces.append(piece)
    print("full", flush=True)
    parent, end_s = os.getppid(), time.monotonic() + PATIENCE_S
    while os.getppid() == parent and time.monotonic() < end_s:
        signal.sigtimedwait([signal.SIGTERM], 1.0)


if __name__ == "__main__":
    _inflate()

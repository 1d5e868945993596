"""The limit: how fast this device gives the same file to direct reads into huge pages.

fio where it is installed and huge pages are granted. Its default buffers are no limit: scattered 4 KiB pages
exceed what one request to the device may hold, and the same disk shows half its speed.

Always with many requests under way. One at a time, fio has one buffer of 4 MiB that the device's writes find
in the processor's cache again and again, which on a virtual disk is faster than any memory; a load has to put
each byte in a place of its own, and `one_at_a_time` measures what that alone costs.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.loader_huge_pages import huge_pages

BLOCK_BYTES = 4 << 20
DEPTH = 32
# Huge pages for fio's buffers, and a few for its own rounding.
FIO_BYTES = DEPTH * BLOCK_BYTES + (32 << 20)
MAP_HUGETLB = 0x40000  # Python's mmap does not name it
FALLBACK = "direct reads of 4 MiB into huge pages by threads of this benchmark"


class FioRefused(RuntimeError):
    """fio did not measure; its own words."""


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One pass over a file by the limit's own reader."""

    seconds: float
    cpu_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FioSetting:
    """How fio reads; `depth` requests of 4 MiB under way."""

    engine: str
    depth: int

    def __str__(self) -> str:
        return f"fio, {self.engine}, 4 MiB direct reads at depth {self.depth} into huge pages"


SETTINGS = (
    FioSetting("io_uring", 32),
    FioSetting("io_uring", 8),
    FioSetting("io_uring", 16),
    FioSetting("libaio", 32),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """`fio` is the fastest of its settings here, None where fio cannot be the limit; `why` says why not."""

    fio: FioSetting | None
    why: str | None = None

    def __str__(self) -> str:
        return str(self.fio) if self.fio else FALLBACK

    def read(self, file: Path) -> LimitReading:
        """Raises: FioRefused."""
        return _fio(file, self.fio) if self.fio else _read_directly(file)


def find_limit(file: Path, *, passes: int = 3) -> Limit:
    """The fastest of fio's settings that work here, else the fallback with the reason."""
    if shutil.which("fio") is None:
        return Limit(None, "fio is not installed (Debian: apt-get install fio)")
    with huge_pages(FIO_BYTES) as why:
        if why is not None:
            return Limit(None, f"fio's default buffers under-report the device, and {why}")
    seconds: dict[FioSetting, float] = {}
    refusal = ""
    for setting in SETTINGS:
        try:
            seconds[setting] = median(_fio(file, setting).seconds for _ in range(passes))
        except FioRefused as failure:
            refusal = str(failure)
    if not seconds:
        return Limit(None, f"fio refused: {refusal}")
    return Limit(min(seconds, key=lambda setting: seconds[setting]))


def _fio(file: Path, setting: FioSetting) -> LimitReading:
    # Reserved for this run alone: whatever else is free, another process may take.
    with huge_pages(FIO_BYTES) as why:
        if why is not None:
            raise FioRefused(why)
        return _run_fio(file, setting)


def _run_fio(file: Path, setting: FioSetting) -> LimitReading:
    command = [
        "fio",
        "--name=limit",
        f"--filename={file}",
        "--rw=read",
        f"--bs={BLOCK_BYTES}",
        f"--iodepth={setting.depth}",
        f"--ioengine={setting.engine}",
        "--iomem=mmaphuge",
        "--direct=1",
        "--readonly",
        "--thread",
        "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    notes, brace, report = done.stdout.partition("{")
    if done.returncode != 0 or not brace:
        raise FioRefused(f"{notes} {done.stderr}".strip()[:200])
    job = json.loads(brace + report)["jobs"][0]
    read, seconds = job["read"], job["read"]["runtime"] / 1e3
    cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
    # Its own rate, finer than its milliseconds. It leaves out a last block that is not whole.
    return LimitReading(read["io_bytes"] / read["bw_bytes"], cpu_s, read["io_bytes"])


def _read_directly(file: Path) -> LimitReading:
    """Threads, because Python has no queue of its own for asynchronous reads."""
    size_bytes, threads = file.stat().st_size, 4
    buffers = [_huge_block() for _ in range(threads)]
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)

    def read(thread: int) -> None:
        for offset in range(thread * BLOCK_BYTES, size_bytes, threads * BLOCK_BYTES):
            os.preadv(fd, [buffers[thread]], offset)

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
        return LimitReading(time.perf_counter() - began_s, time.process_time() - began_cpu_s, size_bytes)
    finally:
        os.close(fd)


def one_at_a_time(file: Path, *, own_places: bool) -> float:
    """Seconds for direct reads of 4 MiB, one after the other, into one buffer or each into its own place.

    Raises: OSError when the machine grants no huge pages for the places.
    """
    blocks = file.stat().st_size // BLOCK_BYTES
    size_bytes = BLOCK_BYTES * (blocks if own_places else 1)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size_bytes, flags=flags) as memory, memoryview(memory) as view:
            for at in range(0, size_bytes, mmap.PAGESIZE):
                view[at] = 1
            began_s = time.perf_counter()
            for block in range(blocks):
                at = block * BLOCK_BYTES if own_places else 0
                with view[at : at + BLOCK_BYTES] as place:
                    os.preadv(fd, [place], block * BLOCK_BYTES)
            return time.perf_counter() - began_s
    finally:
        os.close(fd)


def _huge_block() -> mmap.mmap:
    try:
        block = mmap.mmap(
            -1, BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        )  # MAP_HUGETLB
    except OSError:
        block = mmap.mmap(-1, BLOCK_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
    block[:] = bytes(BLOCK_BYTES)
    return block

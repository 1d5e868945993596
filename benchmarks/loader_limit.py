"""The limit: how fast this device gives the same file to direct reads into huge pages.

fio where it is installed and huge pages are granted. Its default buffers are no limit: scattered 4 KiB pages
exceed what one request to the device may hold, and the same disk shows half its speed.
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
    FioSetting("libaio", 32),
    FioSetting("psync", 1),
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

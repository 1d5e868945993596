"""What a load costs beside time: CPU of every process that takes part, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
# Asked once the clock has stopped: seconds of CPU time that the load of this process took for its checksums.
checksum_cpu_s: list[Callable[[], float]] = []


def cpu_s(processes: Sequence[int]) -> float:
    """User and system seconds of this process and of `processes`, ended threads included."""
    return time.process_time() + sum(time.clock_gettime(_clock_of(process)) for process in processes)


def _clock_of(process: int) -> int:
    """Linux's number for another process's CPU clock, as clock_getcpuclockid makes it; in nanoseconds."""
    return (~process << 3) | 2


@dataclass(frozen=True, slots=True)
class Memory:
    """Of this process, in bytes: now resident, alone and with others; and the most since the last reset."""

    private_bytes: int
    shared_bytes: int
    peak_bytes: int


def reset_peak() -> None:
    """The kernel's high-water mark begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory() -> Memory:
    """Huge pages are counted too, which the kernel's own sums leave out."""
    status, rollup = _fields("/proc/self/status"), _fields("/proc/self/smaps_rollup")
    shared_huge, private_huge = rollup["Shared_Hugetlb"], rollup["Private_Hugetlb"]
    return Memory(
        private_bytes=status["RssAnon"] + private_huge,
        shared_bytes=status["RssFile"] + status["RssShmem"] + shared_huge,
        peak_bytes=status["VmHWM"] + shared_huge + private_huge,
    )


def _fields(path: str) -> dict[str, int]:
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    return found

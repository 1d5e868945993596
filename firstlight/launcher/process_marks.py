"""Which process is ours: a pid alone is not, since pids are used again; pid and start time together are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process of this boot. `started` is the kernel's own figure and only ever compared."""

    pid: int
    started: str


def mark(pid: int) -> ProcessMark | None:
    """The mark of a living process; None when there is none (zombies have ended)."""
    started = _started_linux(pid) if sys.platform.startswith("linux") else _started_ps(pid)
    return ProcessMark(pid, started) if started else None


def is_running(process: ProcessMark) -> bool:
    return mark(process.pid) == process


def end_processes(processes: Iterable[ProcessMark], *, term_s: float = 5.0) -> list[ProcessMark]:
    """SIGTERM those that still are the same process, SIGKILL what is left after `term_s`.

    Returns those that were found running.
    """
    found = [process for process in processes if _signal(process, signal.SIGTERM)]
    deadline_s = time.monotonic() + term_s
    while time.monotonic() < deadline_s and any(is_running(process) for process in found):
        time.sleep(0.05)
    for process in found:
        _signal(process, signal.SIGKILL)
    return found


def _signal(process: ProcessMark, number: signal.Signals) -> bool:
    # Between this look and the kill the pid could be used again; only a wrap of all pids makes that happen.
    if not is_running(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _started_linux(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The command stands in parentheses and may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{start_ticks}"


def _started_ps(pid: int) -> str | None:
    answer = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None

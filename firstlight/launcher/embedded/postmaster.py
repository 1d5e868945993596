"""Whether the postmaster that a `postmaster.pid` names is alive and serves this very data directory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from firstlight.launcher.embedded.socket_directory import SOCKET_NAME

# Lines of the file: pid, data directory, start time, port, socket directory, listen address, …
_SOCKET_LINE = 4


@dataclass(frozen=True, slots=True)
class Postmaster:
    pid: int
    socket_directory: Path | None


def read_postmaster(data: Path) -> Postmaster | None:
    """What the pid file says; None without one or with half of one."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (OSError, IndexError, ValueError):
        return None
    directory = Path(lines[_SOCKET_LINE]) if len(lines) > _SOCKET_LINE and lines[_SOCKET_LINE] else None
    return Postmaster(pid, directory)


def running_postmaster(data: Path) -> Postmaster | None:
    """The postmaster of `data` if it lives. A pid that was used again by something else is not it."""
    postmaster = read_postmaster(data)
    return postmaster if postmaster is not None and _serves(postmaster.pid, data) else None


def drop_stale_files(data: Path, sockets: Path) -> None:
    """Remove pid and lock files of a server that is gone. Only to be called when none runs on `data`."""
    (data / "postmaster.pid").unlink(missing_ok=True)
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (sockets / name).unlink(missing_ok=True)


def _serves(pid: int, data: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return _is_postgres_by_ps(pid)
    try:
        # A postmaster's working directory is its data directory.
        return os.path.samefile(f"/proc/{pid}/cwd", data) and "postgres" in os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False


def _is_postgres_by_ps(pid: int) -> bool:
    told = subprocess.run(["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False)
    return "postgres" in told.stdout

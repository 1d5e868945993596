"""One log file per role under `<state_dir>/logs`, kept below a bound from run to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

LARGEST_LOG_BYTES = 10 << 20
_TAIL_BYTES = 64 << 10


def logs_dir(state_dir: Path) -> Path:
    return state_dir / "logs"


def log_path(state_dir: Path, role: str) -> Path:
    return logs_dir(state_dir) / f"{role}.log"


def open_log(path: Path) -> BinaryIO:
    """Open for appending; a file that has grown past the bound becomes `<name>.1` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LARGEST_LOG_BYTES:
        os.replace(path, path.with_name(path.name + ".1"))
    return path.open("ab")


def tail(path: Path, lines: int) -> str:
    """The last `lines` lines; empty when there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])

"""Why a server says that it ended: the one line among its many that a person needs."""

from __future__ import annotations

import re
from pathlib import Path

# Postgres' severities and what its programs write, and Temporal's last line.
_REASON = re.compile(r"(?:FATAL: +|PANIC: +|^Error: |^\w+: (?=could not)|error: )(?P<reason>.+)$")


def reason_of(told: str) -> str:
    """The last reason in what was told, else its last line."""
    found = [match["reason"] for line in told.splitlines() if (match := _REASON.search(line))]
    lines = told.strip().splitlines()
    return (found[-1] if found else lines[-1] if lines else "it said nothing").strip()


def read_from(log: Path, start: int) -> str:
    """What was written to `log` since it had `start` bytes."""
    try:
        with log.open("rb") as file:
            file.seek(start if log.stat().st_size >= start else 0)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def size_of(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0

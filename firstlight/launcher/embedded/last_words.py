"""Why a server says that it ended: the one line among its many that a person needs."""

from __future__ import annotations

import re
from pathlib import Path

# Postgres' severities and what its programs write, and Temporal's last line.
_REASON = re.compile(r"(?:FATAL: +|PANIC: +|^Error: |^\w+: (?=could not)|error: )(?P<reason>.+)$")

# A setting that is refused is named in a line before the one that says that it ends.
_SETTING = re.compile(r"LOG: +(?P<reason>(?:unrecognized configuration parameter|invalid value for) .+)$")


def reason_of(told: str) -> str:
    """The last reason in what was told, behind what Postgres says of its settings; else its last line."""
    lines = told.strip().splitlines()
    found = [match["reason"] for line in lines if (match := _REASON.search(line))]
    settings = [match["reason"] for line in lines if (match := _SETTING.search(line))]
    if found and settings:
        return f"{'; '.join(dict.fromkeys(settings))} ({found[-1].strip()})"
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

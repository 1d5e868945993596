"""Small truths about files and folders: what they hold, that they are on the device, whose they are."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from firstlight.domain.errors import Conflict


def directory_bytes(directory: Path) -> int:
    """Sum of the sizes of the files below `directory`; 0 when it is not there."""
    return sum(status.st_size for status in _files(directory))


def allocated_bytes(directory: Path) -> int:
    """What the files below `directory` take now: a sparse file counts by what it holds."""
    return sum(min(status.st_size, status.st_blocks * 512) for status in _files(directory))


def _files(directory: Path) -> Iterator[os.stat_result]:
    for parent, _, names in os.walk(directory):
        for name in names:
            yield os.lstat(os.path.join(parent, name))


def sync_directory(directory: Path) -> None:
    """fsync the directory itself, so that renames and new names in it outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def hold(lock: Path, *, what: str) -> int:
    """Lock a file until its descriptor is closed or the process ends. Raises: Conflict if another has it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as failure:
        os.close(descriptor)
        raise Conflict(f"another process of Firstlight uses {what}") from failure
    return descriptor

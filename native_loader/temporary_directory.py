"""Hidden siblings of a checkpoint, in which it is written before it takes its name.

Each is locked while its writer lives. A lock that can be had means a writer that died, in whatever container.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from firstlight.domain.errors import StorageError
from native_loader.storage_errors import storage_errors

TEMPORARY_MARK = ".partial-"


def fsync_directory(directory: Path) -> None:
    """Makes the names in it, and their absence, survive a loss of power. Raises: OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_temporary(destination: Path) -> tuple[Path, int]:
    """A locked hidden sibling of `destination`, and the descriptor that holds its lock."""
    parent = destination.parent
    with storage_errors(destination):
        _make_durable(parent)
        for _ in range(8):
            directory = parent / f".{destination.name}{TEMPORARY_MARK}{secrets.token_hex(6)}"
            directory.mkdir()
            # Another process's remove_leftovers may take it between these two lines; then try a new name.
            fd = _try_lock(directory)
            if fd is not None:
                return directory, fd
            with suppress(OSError):
                directory.rmdir()
    raise StorageError(f"cannot keep a temporary directory beside {destination}", path=str(destination))


def _make_durable(directory: Path) -> None:
    """Makes it and its parents where they are missing, each with a name that survives a loss of power."""
    if directory.is_dir():
        return
    _make_durable(directory.parent)
    directory.mkdir(exist_ok=True)
    fsync_directory(directory.parent)


def _try_lock(directory: Path) -> int | None:
    """A descriptor holding the directory's lock, or None if somebody else has it or it is gone."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(directory, follow_symlinks=False).st_ino == os.fstat(fd).st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def remove_leftovers(parent: Path) -> list[Path]:
    """Remove what dead writers left in `parent`; answers what was removed. Living writers are untouched."""
    removed = []
    for directory in sorted(parent.glob(f".*{TEMPORARY_MARK}*")):
        fd = _try_lock(directory)
        if fd is None:
            continue
        try:
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(fd)
        removed.append(directory)
    return removed

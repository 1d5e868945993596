"""The operating system's answers about files, as members of the error tree."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.domain.errors import DiskFull, StorageError


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raises: DiskFull for a full disk or quota, StorageError for any other OSError of the block."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"cannot write {path}: {error.strerror}", path=str(path), errno=error.errno) from error

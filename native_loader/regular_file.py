"""The files of a checkpoint, which must be plain files: never links, pipes or devices.

A link could carry a secret of this host into a model's files, a pipe could block its reader for ever, a
device could have no end. None of them is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from firstlight.domain.errors import CheckpointMissing, ManifestInvalid, ReadFailed


def regular_size(path: Path) -> int:
    """Bytes of a plain file. Raises: CheckpointMissing, ManifestInvalid(rule='bad_path'), ReadFailed."""
    try:
        found = os.lstat(path)
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path} does not exist", path=str(path)) from error
    except OSError as error:
        raise _read_failed(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise _not_plain(path)
    return found.st_size


def read_regular(path: Path, *, limit_bytes: int) -> bytes:
    """A plain file's content. Raises: as `regular_size`, and ManifestInvalid for one beyond the limit."""
    if regular_size(path) > limit_bytes:
        raise ManifestInvalid(f"{path} exceeds {limit_bytes} bytes", rule="wrong_size", path=str(path))
    try:
        # Should it have become a link or a pipe in between, this neither follows nor blocks.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            content = file.read(limit_bytes + 1)
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path} does not exist", path=str(path)) from error
    except OSError as error:
        raise _read_failed(path, error) from error
    if len(content) > limit_bytes:
        raise ManifestInvalid(f"{path} exceeds {limit_bytes} bytes", rule="wrong_size", path=str(path))
    return content


def _not_plain(path: Path) -> ManifestInvalid:
    return ManifestInvalid(f"{path} is not a plain file", rule="bad_path", path=str(path))


def _read_failed(path: Path, error: OSError) -> ReadFailed:
    return ReadFailed(f"cannot read {path}: {error.strerror}", path=str(path))

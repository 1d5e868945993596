"""A private directory with a short path for Postgres' socket.

A Unix socket's path may have about 100 bytes, and the server's account must be able to reach it; a state
directory promises neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from firstlight.domain.errors import LaunchError
from firstlight.launcher.embedded.server_account import ServerAccount

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, a final zero included.
LONGEST_SOCKET_PATH = 100
SOCKET_NAME = ".s.PGSQL.5432"


def runtime_directory(data: Path) -> Path:
    """The directory of this data's socket (and of copied programs), the same at every start. 0711.

    Others may pass through it but not look into it; what it holds is private by itself.
    Raises: LaunchError when somebody else has put something under the name.
    """
    digest = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"firstlight-{os.geteuid()}-{digest}"
    path.mkdir(mode=0o711, exist_ok=True)
    _check_ours(path, os.geteuid())
    path.chmod(0o711)
    return path


def socket_directory(runtime: Path, account: ServerAccount) -> Path:
    """The 0700 directory of the socket, owned by the account. Raises: LaunchError for a long path."""
    path = runtime / "pg"
    if len(os.fsencode(path / SOCKET_NAME)) > LONGEST_SOCKET_PATH:
        raise LaunchError(
            f"the path of Postgres' socket, {path / SOCKET_NAME}, is too long: set TMPDIR to a shorter one"
        )
    path.mkdir(mode=0o700, exist_ok=True)
    account.own(path)
    path.chmod(0o700)
    return path


def remove_if_empty(runtime: Path) -> None:
    """Leave nothing behind in the temporary directory once the server has stopped."""
    for path in (runtime / "pg", runtime):
        with contextlib.suppress(OSError):
            path.rmdir()


def _check_ours(path: Path, user_id: int) -> None:
    # A temporary directory is shared: a name we can guess, another user may have taken.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user_id:
        raise LaunchError(f"{path} is not a directory of ours: remove it, or set TMPDIR to a private one")

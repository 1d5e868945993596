"""Whom Postgres runs as: ourselves, or, since it refuses root, the data's owner or `nobody`."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.domain.errors import LaunchError


@dataclass(frozen=True, slots=True)
class ServerAccount:
    """A user and group to switch to; None: we are not root and stay who we are."""

    user_id: int | None = None
    group_id: int | None = None

    def run(
        self, argv: Sequence[str], *, directory: Path, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end in `directory`, which is entered before the user is switched."""
        return subprocess.run(
            argv,
            cwd=directory,
            # Nothing of our environment (PG*, LD_*) may change what the server does.
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            user=self.user_id,
            group=self.group_id,
            # Ctrl-C is for the launcher, which stops the server; initdb would die of it halfway.
            start_new_session=True,
            extra_groups=None if self.user_id is None else [],
        )

    def own(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.user_id is not None and self.group_id is not None:
            os.chown(path, self.user_id, self.group_id)

    def can_execute(self, program: Path) -> bool:
        """Whether the account may run the program: every directory above it counts."""
        if self.user_id is None:
            return os.access(program, os.X_OK)
        try:
            return self.run([str(program), "--version"], directory=Path("/")).returncode == 0
        except OSError:
            return False


def account_for(data: Path) -> ServerAccount:
    """Ourselves unless we are root; else the owner of existing data, or `nobody`. Raises: LaunchError."""
    if os.geteuid() != 0:
        if data.exists() and data.stat().st_uid != os.geteuid():
            raise LaunchError(
                f"{data} belongs to another user (id {data.stat().st_uid}): run as that user, or as root, "
                "or choose another FIRSTLIGHT_STATE_DIR"
            )
        return ServerAccount()
    if data.exists() and data.stat().st_uid != 0:
        return ServerAccount(data.stat().st_uid, data.stat().st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise LaunchError(
            "Postgres refuses to run as root and this machine has no user 'nobody': run as another user, "
            "or set FIRSTLIGHT_DATABASE_URL"
        ) from error
    return ServerAccount(nobody.pw_uid, nobody.pw_gid)

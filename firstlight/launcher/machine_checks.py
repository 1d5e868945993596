"""What must be true of the machine before anything starts, each said in one sentence with its setting."""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path

from firstlight.domain.errors import DiskFull, LaunchError, PortTaken

# Databases and logs, and room for a first small model; later starts find theirs on the disk already.
NEEDED_FREE_BYTES = 2 << 30
NEEDED_AGAIN_BYTES = 256 << 20


def prepare_state_dir(state_dir: Path) -> None:
    """Make the directory, for its owner only. Raises: LaunchError."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as failure:
        raise LaunchError(
            f"cannot make the state directory {state_dir}: {failure.strerror}; "
            "set FIRSTLIGHT_STATE_DIR to one you may write"
        ) from failure


def check_disk(state_dir: Path, *, needed_bytes: int | None = None) -> None:
    """Raises: DiskFull."""
    if needed_bytes is None:
        needed_bytes = NEEDED_AGAIN_BYTES if (state_dir / "hosts").is_dir() else NEEDED_FREE_BYTES
    free_bytes = shutil.disk_usage(state_dir).free
    if free_bytes < needed_bytes:
        raise disk_full(
            f"{free_bytes / 1e9:.2f} GB are free under {state_dir}, and {needed_bytes / 1e9:.2f} are needed"
        )


def disk_full(what: str) -> DiskFull:
    """`what` with the next step behind it."""
    return DiskFull(f"{what}; make room, or set FIRSTLIGHT_STATE_DIR to another disk")


def is_about_space(told: str) -> bool:
    """Whether a program's last words are about a full disk."""
    return "No space left" in told or "Check free disk space" in told or "disk is full" in told


def check_port(host: str, port: int, *, setting: str) -> None:
    """Raises: PortTaken when something listens there, LaunchError when the address is not ours."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as failure:
            raise _refusal(failure, host, port, setting) from failure


def free_port(host: str) -> int:
    """A port nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _refusal(failure: OSError, host: str, port: int, setting: str) -> LaunchError:
    if failure.errno == errno.EADDRINUSE:
        return PortTaken(
            f"port {port} on {host} is taken by another program; stop it or set {setting} to a free port",
            port=port,
            setting=setting,
        )
    return LaunchError(f"cannot listen on {host}:{port} ({setting}): {failure.strerror}")

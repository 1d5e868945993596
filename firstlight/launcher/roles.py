"""How each role is started as a process of its own."""

from __future__ import annotations

import sys

from firstlight.domain.names import HostId
from firstlight.launcher.gpu_host import gpu_host_argv
from firstlight.launcher.log_files import log_path
from firstlight.launcher.processes import RoleSpec
from firstlight.launcher.role_environment import role_environment
from firstlight.settings import Settings


def control_role(settings: Settings, role: str) -> RoleSpec:
    """`role` as `firstlight serve` names it."""
    return RoleSpec(
        name=role,
        argv=(sys.executable, "-m", "firstlight.cli", "serve", role),
        env=role_environment(settings),
        log_path=log_path(settings.state_dir, role),
        # A stream that goes on for longer than this is cut: whoever pressed Ctrl-C waits.
        stop_s=5.0,
    )


def gpu_host_role(settings: Settings, host: HostId) -> RoleSpec:
    return RoleSpec(
        name=host,
        argv=gpu_host_argv(settings, host),
        env=role_environment(settings),
        log_path=log_path(settings.state_dir, host),
        stop_s=15.0,
    )

"""How each role is started as a process of its own."""

from __future__ import annotations

import sys

from firstlight.domain.names import HostId
from firstlight.launcher.gpu_host import gpu_host_argv, host_ids
from firstlight.launcher.log_files import log_path
from firstlight.launcher.processes import RoleSpec
from firstlight.launcher.role_environment import role_environment
from firstlight.settings import Settings

LOCAL_DRAIN_S = 1.0


def control_role(settings: Settings, role: str) -> RoleSpec:
    """`role` as `firstlight serve` names it."""
    settings = _impatient(settings)
    return RoleSpec(
        name=role,
        argv=(sys.executable, "-m", "firstlight.cli", "serve", role),
        env=role_environment(settings),
        log_path=log_path(settings.state_dir, role),
        stop_s=4.0 + settings.api_drain_s,
    )


def _impatient(settings: Settings) -> Settings:
    """Whoever pressed Ctrl-C waits: an answer that goes on for longer is cut, unless they said otherwise."""
    if "api_drain_s" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"api_drain_s": LOCAL_DRAIN_S})


def _port(settings: Settings, host: HostId) -> int | None:
    """The control worker has the one that was given, and each host one of the next."""
    if settings.metrics_port is None:
        return None
    return settings.metrics_port + 1 + host_ids(settings).index(host)


def gpu_host_role(settings: Settings, host: HostId) -> RoleSpec:
    # All hosts of a local run stop together: nothing has anywhere to go.
    settings = settings.model_copy(update={"drain_on_stop_s": 0.0, "metrics_port": _port(settings, host)})
    return RoleSpec(
        name=host,
        argv=gpu_host_argv(settings, host),
        env=role_environment(settings),
        log_path=log_path(settings.state_dir, host),
        stop_s=15.0,
    )

"""The GPU host role: the host supervisor, with this host's agent as its child."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from firstlight.domain.errors import InvalidSettings
from firstlight.domain.names import HostId, host_id
from firstlight.launcher.metrics_listener import check_metrics_listener
from firstlight.rpc.identity import assume, check_listener
from firstlight.settings import Settings, read_settings
from gpu_worker.host.config import ChildConfig, HostConfig


def main() -> None:
    """Become the host supervisor of the one host the settings name. Raises: InvalidSettings."""
    settings = read_settings()
    argv = gpu_host_argv(settings, check_gpu_host(settings))
    os.execv(argv[0], argv)  # noqa: S606 - same process, so that whoever started it can stop it


def check_gpu_host(settings: Settings) -> HostId:
    """What its processes would refuse too, but in logs of children that keep ending; the host's name.

    Raises: InvalidSettings.
    """
    ids = host_ids(settings)
    if len(ids) != 1:
        raise InvalidSettings(
            f"FIRSTLIGHT_HOST_IDS={settings.host_ids} names {len(ids)} hosts, and this process is one: "
            "set it to this machine's name in the fleet",
            setting="FIRSTLIGHT_HOST_IDS",
        )
    _check_control_plane(settings)
    check_listener(settings.host_bind_address, assume(settings.rpc_tls_dir, may_be_plain=settings.rpc_plain))
    check_metrics_listener(settings)
    return ids[0]


def _check_control_plane(settings: Settings) -> None:
    """Its agent needs both."""
    for name in ("database_url", "temporal_address"):
        if getattr(settings, name) is None:
            setting = f"FIRSTLIGHT_{name.upper()}"
            raise InvalidSettings(
                f"{setting} must name the cluster this host joins (`firstlight up` starts one with hosts)",
                setting=setting,
            )


def host_ids(settings: Settings) -> tuple[HostId, ...]:
    """Raises: InvalidName, InvalidSettings for a repeated id."""
    ids = tuple(host_id(text.strip()) for text in settings.host_ids.split(",") if text.strip())
    if not ids or len(set(ids)) != len(ids):
        raise InvalidSettings(
            f"FIRSTLIGHT_HOST_IDS={settings.host_ids!r} must name each host once",
            setting="FIRSTLIGHT_HOST_IDS",
        )
    return ids


def host_dir(state_dir: Path, host: HostId) -> Path:
    return state_dir / "hosts" / host


def gpu_host_argv(settings: Settings, host: HostId) -> tuple[str, ...]:
    return (sys.executable, "-m", "gpu_worker.host", "--config-json", host_config(settings, host).to_json())


def host_config(settings: Settings, host: HostId) -> HostConfig:
    folder = host_dir(settings.state_dir.absolute(), host)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return HostConfig(
        host_id=host,
        state_dir=str(folder),
        ssd_capacity_bytes=settings.ssd_capacity_bytes,
        dram_capacity_bytes=settings.dram_capacity_bytes,
        gpu_count=settings.gpus_per_host,
        bind_address=settings.host_bind_address,
        spares=settings.spares,
        registered_buffers=settings.registered_buffers,
        peer_secret_file=_keep_peer_secret(settings, folder),
        tls_dir=str(settings.rpc_tls_dir.absolute()) if settings.rpc_tls_dir is not None else None,
        may_be_plain=settings.rpc_plain,
        children=(agent_config(host, drain_on_stop_s=settings.drain_on_stop_s),),
        log_format=settings.log_format,
    )


def _keep_peer_secret(settings: Settings, folder: Path) -> str | None:
    """In a file that only its owner reads: a command line is everybody's to see."""
    path = folder / "peer-secret"
    path.unlink(missing_ok=True)
    if settings.peer_secret is None:
        return None
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(settings.peer_secret.get_secret_value())
    return str(path)


# Beyond its draining, for what it then tells Postgres and Temporal.
AGENT_STOP_S = 6.0


def agent_config(host: HostId, *, drain_on_stop_s: float = 0.0) -> ChildConfig:
    return ChildConfig(
        name="host-agent",
        argv=(sys.executable, "-m", "firstlight.cli", "serve", "host-agent"),
        env={
            "FIRSTLIGHT_HOST_IDS": host,
            "FIRSTLIGHT_HOST_ADDRESS": "{host_address}",
            "FIRSTLIGHT_STORE_ADDRESS": "{store_address}",
            "FIRSTLIGHT_DRAIN_ON_STOP_S": str(drain_on_stop_s),
        },
        stop_s=drain_on_stop_s + AGENT_STOP_S,
    )

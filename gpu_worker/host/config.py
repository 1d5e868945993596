"""What a host supervisor is told at start; travels as JSON on its command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firstlight.domain.errors import InvalidSettings
from firstlight.domain.names import host_id
from firstlight.telemetry.log_lines import LogFormat
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.config_json import build, decode_object

# Not while everything of a host is starting.
PLANNER_WARM_AFTER_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildConfig:
    """One more process the supervisor keeps running, such as the host agent. `env` adds to its own.

    Told to stop, it may take `stop_s`; engines and store end after it.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Settings of one GPU host. Ports of 0 are chosen by the kernel and published in `host.json`.

    `device` is "cpu", "cuda" or "auto"; on "cpu" a GPU is a slot that an engine may run in.
    `cuda_library` is the CUDA driver's, found where the machine keeps it.
    `spares` engines stand ready beyond the bound ones. `ssd_dir` None puts the cache under `state_dir`.
    `tls_dir` and `may_be_plain` are as in firstlight.rpc.identity, for all of this host's processes.
    A child's argv and env may name `{host_address}`, `{store_address}` and `{store_socket}`.
    """

    host_id: str
    state_dir: str
    ssd_capacity_bytes: int
    dram_capacity_bytes: int
    gpu_count: int = 1
    device: str = "auto"
    cuda_library: str = "libcuda.so.1"
    spares: int = 1
    ssd_dir: str | None = None
    bind_address: str = "127.0.0.1"
    host_port: int = 0
    store_port: int = 0
    load_threads: int = 2
    registered_buffers: bool = False
    peer_port: int = 0
    peer_secret_file: str | None = None
    tls_dir: str | None = None
    may_be_plain: bool = False
    drain_timeout_s: float = 5.0
    children: tuple[ChildConfig, ...] = ()
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        host_id(self.host_id)
        if self.gpu_count <= 0:
            raise InvalidSettings(f"gpu_count must be positive, not {self.gpu_count}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidSettings(f"device {self.device!r} is not auto, cpu or cuda")
        if self.spares <= 0:
            raise InvalidSettings(f"spares must be positive, not {self.spares}")
        self.store_config()

    @classmethod
    def from_json(cls, text: str) -> HostConfig:
        """Raises: InvalidSettings."""
        values = decode_object(text, what="host config")
        values["children"] = tuple(_child(child) for child in values.get("children", ()))
        return build(cls, values)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def store_config(self) -> StoreConfig:
        return StoreConfig(
            host_id=self.host_id,
            state_dir=self.state_dir,
            ssd_capacity_bytes=self.ssd_capacity_bytes,
            dram_capacity_bytes=self.dram_capacity_bytes,
            ssd_dir=self.ssd_dir,
            bind_address=self.bind_address,
            port=self.store_port,
            load_threads=self.load_threads,
            registered_buffers=self.registered_buffers,
            planner_warm_after_s=PLANNER_WARM_AFTER_S,
            peer_port=self.peer_port,
            peer_secret_file=self.peer_secret_file,
            tls_dir=self.tls_dir,
            may_be_plain=self.may_be_plain,
            log_format=self.log_format,
        )

    @property
    def address_file(self) -> Path:
        """Written when the host serves: {"host_address", "store_address", "store_socket", "pid"}."""
        return Path(self.state_dir) / "host.json"


# Any: the values of a JSON object, checked by `build`.
def _child(values: Mapping[str, Any]) -> ChildConfig:
    if not isinstance(values, Mapping):
        raise InvalidSettings("each child is an object with name, argv and env")
    child = build(ChildConfig, {**values, "argv": tuple(values.get("argv", ()))})
    if not child.argv:
        raise InvalidSettings(f"child {child.name!r} has an empty argv")
    return child

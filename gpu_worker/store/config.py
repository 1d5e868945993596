"""What a store process is told at start; travels as JSON on its command line."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from firstlight.domain.errors import InvalidSettings
from firstlight.domain.names import host_id
from firstlight.telemetry.log_lines import LogFormat
from gpu_worker.store.config_json import build, decode_object

# sockaddr_un holds 108 bytes with its terminator; stay clear of it.
_SOCKET_PATH_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Settings of one store. `port` 0 lets the kernel choose.

    `state_dir` holds the address file, the probe's result and, unless `ssd_dir` is given, the SSD cache.
    `cuda_library` is the CUDA driver's, empty on a host without GPUs.
    `registered_buffers` has io_uring read into memory that the kernel keeps at hand, where it may.
    At `peer_port` other stores fetch from this one, if they show the secret in `peer_secret_file`; without
    one that is open on loopback and closed elsewhere.
    `tls_dir` and `may_be_plain` are as in firstlight.rpc.identity.
    `planner_warm_after_s` has a planner of conversions ready so long after the start, and keeps it: some
    megabytes where a zygote forks it, a few hundred where not. None: made when needed.
    `arena_prefault` False leaves pages to their first use (tests; a slow first load in exchange).
    """

    host_id: str
    state_dir: str
    ssd_capacity_bytes: int
    dram_capacity_bytes: int
    ssd_dir: str | None = None
    bind_address: str = "127.0.0.1"
    port: int = 0
    load_threads: int = 2
    registered_buffers: bool = False
    fetch_parallelism: int = 8
    arena_prefault: bool = True
    planner_warm_after_s: float | None = None
    peer_port: int = 0
    peer_secret_file: str | None = None
    tls_dir: str | None = None
    may_be_plain: bool = False
    cuda_library: str = ""
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        host_id(self.host_id)
        for name in ("ssd_capacity_bytes", "dram_capacity_bytes", "load_threads", "fetch_parallelism"):
            if getattr(self, name) <= 0:
                raise InvalidSettings(f"{name} must be positive, not {getattr(self, name)}")
        # The address is published as it is bound, and nobody can connect to a wildcard of another machine.
        if self.bind_address in ("", "0.0.0.0", "::"):  # noqa: S104 - refused, not bound
            raise InvalidSettings(
                "bind_address must be an address that the other machines reach this host at"
            )
        for port in (self.port, self.peer_port):
            if not 0 <= port < 65536:
                raise InvalidSettings(f"port {port} is not a port")

    @classmethod
    def from_json(cls, text: str) -> StoreConfig:
        """Raises: InvalidSettings."""
        return build(cls, decode_object(text, what="store config"))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def ssd_root(self) -> Path:
        return Path(self.ssd_dir) if self.ssd_dir else Path(self.state_dir) / "ssd"

    @property
    def socket_path(self) -> Path:
        """Where readers get the arena; a private folder of /tmp when `state_dir` is too long for a socket."""
        path = Path(self.state_dir).absolute() / "store.sock"
        if len(str(path)) <= _SOCKET_PATH_LIMIT:
            return path
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"firstlight-{digest}" / "store.sock"

    @property
    def planner_socket_path(self) -> Path:
        """Where a supervisor has planners of conversions forked; a store alone starts its own."""
        return self.socket_path.with_name("planners.sock")

    def make_socket_dir(self) -> None:
        """Make the folder of `socket_path`, for this user only. Raises: InvalidSettings."""
        folder = self.socket_path.parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        # In the shared temporary folder anyone could have made it first, to answer in the store's place.
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if folder != Path(self.state_dir).absolute() and not is_ours:
            raise InvalidSettings(f"{folder} belongs to somebody else; give a shorter state_dir")

    @property
    def address_file(self) -> Path:
        """Written when the store serves: {"address", "socket", "pid", "peer_endpoint"}."""
        return Path(self.state_dir) / "store.json"

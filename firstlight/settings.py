"""All settings of a process, read once at start from `FIRSTLIGHT_*` variables, frozen, and passed down.

Nothing else in the product reads the environment, but for the standard's own `OTEL_*` (telemetry/tracing.py).
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from firstlight.domain.errors import InvalidSettings


class Settings(BaseSettings):
    """One field per setting; the name in upper case behind `FIRSTLIGHT_` is its variable."""

    model_config = SettingsConfigDict(env_prefix="FIRSTLIGHT_", frozen=True, extra="ignore")

    # What `firstlight up` keeps: databases, SSD caches, logs.
    state_dir: Path = Field(default=Path(".firstlight"), description="Directory of all local state.")

    database_url: str | None = Field(
        default=None, description="postgresql:// URL of an existing Postgres; unset: an embedded one."
    )
    temporal_address: str | None = Field(
        default=None, description="host:port of an existing Temporal; unset: an embedded one."
    )
    temporal_namespace: str = Field(default="default", description="Temporal namespace.")
    temporal_tls: bool = Field(default=False, description="Connect to Temporal with TLS.")
    temporal_tls_server_root_ca: Path | None = Field(default=None, description="PEM file of the server's CA.")
    temporal_tls_client_cert: Path | None = Field(
        default=None, description="PEM file of the client certificate."
    )
    temporal_tls_client_key: Path | None = Field(default=None, description="PEM file of the client key.")
    temporal_api_key: SecretStr | None = Field(default=None, description="Temporal API key.")
    temporal_ui_url: str | None = Field(default=None, description="Base URL of the Temporal UI, for links.")

    api_host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    api_port: int = Field(default=8080, ge=0, le=65535, description="Port the API listens on.")
    temporal_port: int = Field(default=7233, ge=0, le=65535, description="Port of the embedded Temporal.")
    temporal_ui_port: int = Field(default=8233, ge=0, le=65535, description="Port of its UI.")
    api_keys: SecretStr | None = Field(
        default=None, description="Comma-separated API keys; required when the API is not on loopback."
    )

    api_tls_cert: Path | None = Field(
        default=None, description="PEM file of the API's certificate and chain; with it the API speaks HTTPS."
    )
    api_tls_key: Path | None = Field(default=None, description="PEM file of its key.")
    api_tls_client_ca: Path | None = Field(
        default=None, description="PEM file of a CA: clients must show a certificate of it, beside their key."
    )
    api_ca: Path | None = Field(
        default=None,
        description="For the command line: PEM file of the CA of the API's certificate, if not a public one.",
    )

    api_drain_s: float = Field(
        default=30.0, gt=0, description="How long an API that stops lets running answers go on."
    )

    start_timeout_s: float = Field(default=300.0, gt=0, description="How long a request waits for a start.")
    max_queue_per_model: int = Field(default=256, ge=1, description="Requests that may wait for one model.")
    max_plans: int = Field(default=3, ge=1, description="Hosts a start may try before it fails.")
    default_keep_alive_s: float = Field(default=300.0, ge=0, description="Idle time before scale to zero.")
    default_max_concurrency: int = Field(default=8, ge=1, description="Requests one instance runs at once.")
    default_transfer: Literal["exact", "tokens", "fast"] = Field(
        default="exact",
        description="How KV caches travel when an instance moves: exact sends them as they are; tokens and "
        "fast may compute them anew, which can change a token where two are nearly tied.",
    )

    keep_alive_policy: Literal["fixed", "hybrid-histogram", "layered"] = Field(
        default="fixed",
        description="How long an idle instance is kept: fixed (the model's keep-alive time), "
        "hybrid-histogram (what the gaps between its requests say) or layered (what each layer of warmth "
        "saves and takes).",
    )
    keep_alive_longest_s: float = Field(
        default=3600.0, gt=0, description="The longest idle time a keep-alive policy may decide on."
    )
    scaling_policy: Literal["concurrency"] = Field(
        default="concurrency", description="How many instances a model gets: by its requests at a time."
    )
    scale_out_at: float = Field(
        default=2.0,
        gt=0,
        description="Requests a place, waiting ones included, beyond which a model gets another instance.",
    )
    scale_out_after_s: float = Field(
        default=0.5, ge=0, description="How long a shortage must last before another instance is started."
    )
    scale_in_at: float = Field(
        default=0.6, gt=0, description="Requests a place that must suffice with one instance fewer."
    )
    scale_in_after_s: float = Field(
        default=60.0,
        ge=0,
        description="How long an instance must be more than needed before requests go elsewhere, and how "
        "long it is then kept while idle.",
    )
    prefetch_bytes: int = Field(
        default=0,
        ge=0,
        description="Bytes that one look of the reconciler may bring nearer ahead of need, over all hosts; "
        "0: none.",
    )
    prefetch_horizon_s: float = Field(
        default=300.0, gt=0, description="How far ahead a model's next request is looked for."
    )
    prefetch_need: float = Field(
        default=0.2, ge=0, le=1, description="How likely a request must be within that time."
    )
    prefetch_unknown_need: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="How likely a model is taken to be wanted whose requests are too few to say.",
    )
    prefetch_copies: int = Field(
        default=2, ge=1, description="Hosts whose SSDs may be given a copy of one model ahead of need."
    )
    prefetch_dram_copies: int = Field(
        default=1, ge=1, description="Hosts that may hold a copy of one model in DRAM ahead of need."
    )
    prefetch_dram_share: float = Field(
        default=0.8, ge=0, le=1, description="Share of a host's DRAM pool that is filled ahead of need."
    )

    drain_on_stop_s: float = Field(
        default=0.0,
        ge=0,
        description="How long a GPU host that is told to stop waits until what it runs has moved to other "
        "hosts; 0: it ends at once, and its requests go on elsewhere from the tokens they have.",
    )
    worker_build_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$",
        description="Build id of a control worker's code, for Temporal's worker versioning; unset: "
        "unversioned.",
    )

    lease_s: float = Field(default=20.0, gt=1, description="A host that is silent for so long is lost.")
    reconcile_every_s: float = Field(default=60.0, ge=5, description="Period of the fleet reconciler.")
    consolidate_requests: int | None = Field(
        default=None,
        ge=0,
        description="Hosts that run at most so many requests are emptied onto busier ones by the reconciler; "
        "unset: never.",
    )

    host_ids: str = Field(default="host-a,host-b", description="Hosts that `firstlight up` starts.")
    host_bind_address: str = Field(
        default="127.0.0.1",
        description="Address of this machine that a GPU host's services listen on and are reached at.",
    )
    rpc_tls_dir: Path | None = Field(
        default=None,
        description="Folder of ca.pem, cert.pem and key.pem: roles then show and ask for certificates.",
    )
    rpc_plain: bool = Field(
        default=False, description="Let GPU hosts be called in plain text beyond loopback: a private network."
    )
    peer_secret: SecretStr | None = Field(
        default=None,
        description="Shared by all GPU hosts: their stores give checkpoints to each other. Needed beyond "
        "loopback; without it they do not.",
    )
    host_address: str | None = Field(default=None, description="Where a host agent finds its supervisor.")
    store_address: str | None = Field(default=None, description="Where a host agent finds its store.")
    gpus_per_host: int = Field(default=1, ge=1, description="GPUs (engine slots on a CPU machine) per host.")
    ssd_capacity_bytes: int = Field(default=20 << 30, gt=0, description="SSD cache per host.")
    dram_capacity_bytes: int = Field(default=2 << 30, gt=0, description="DRAM pool per host.")
    registered_buffers: bool = Field(
        default=False,
        description="Loads by io_uring read into memory that is registered with the kernel, where it and "
        "`ulimit -l` allow; no gain was measured.",
    )
    spares: int = Field(
        default=1,
        ge=1,
        description="Warm engine processes kept ready for each GPU, or for a host without any.",
    )

    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="How log lines are written: text, or json: one object a line."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port at which a control worker, or the agent of a GPU host, serves /metrics; unset: "
        "none. `firstlight up` gives it to the control worker and the next ones to its hosts. The API serves "
        "its own at its own port.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address it is served at. Beyond loopback one of FIRSTLIGHT_API_KEYS is asked for, "
        "unless FIRSTLIGHT_RPC_PLAIN says that the network is private.",
    )

    @field_validator("database_url")
    @classmethod
    def _with_driver(cls, url: str | None) -> str | None:
        """Every way to write a Postgres URL, as the one that names the driver we have."""
        if url is None:
            return None
        scheme, _, rest = url.partition("://")
        is_whole = scheme in ("postgres", "postgresql", "postgresql+psycopg") and "/" in rest
        try:
            # Reading the port is what checks it.
            is_whole = is_whole and urlsplit(url).port != 0
        except ValueError:
            is_whole = False
        if not is_whole:
            # The URL may hold a password, so it is not repeated.
            raise ValueError("it must read postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        return f"postgresql+psycopg://{rest}"

    @field_validator("temporal_address")
    @classmethod
    def _with_port(cls, address: str | None) -> str | None:
        if address is not None and not address.rpartition(":")[2].isdigit():
            raise ValueError(f"it must read HOST:PORT, not {address!r}")
        return address

    def first_api_key(self) -> str | None:
        """What our own processes show to the API; None where no key is configured."""
        keys = self.api_keys.get_secret_value().split(",") if self.api_keys is not None else []
        return next((key.strip() for key in keys if key.strip()), None)

    def is_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        return is_loopback(self.api_host)

    def secrets(self) -> tuple[str, ...]:
        """Every value that must not be written anywhere."""
        values = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        password = urlsplit(self.database_url).password if self.database_url is not None else None
        keys = [part.strip() for value in values for part in value.split(",")]
        return tuple({one for one in (*values, *keys, password) if one})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` (command-line options) win. Raises: InvalidSettings."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        # Any: pydantic validates each value against its field.
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "FIRSTLIGHT_" + "_".join(str(part) for part in first["loc"]).upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidSettings(f"{name}: {reason}", setting=name) from error

"""What a supervisor and its engine say to each other, as values; JSON lines on one Unix socket.

Imported by both sides, so it knows neither torch nor grpc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine is forked. `device` is "cpu" or "cuda:<index>"; which, is the supervisor's affair.

    `cuda_library` is the CUDA driver's, found where the machine keeps it.

    `tls_dir` and `may_be_plain` are as in firstlight.rpc.identity.

    `prefill_chunk_tokens` bounds how long a prompt holds up running streams; None fits it to the device.
    """

    store_socket: str
    device: str = "cpu"
    cuda_library: str = "libcuda.so.1"
    bind_address: str = "127.0.0.1"
    tls_dir: str | None = None
    may_be_plain: bool = False
    threads: int = 1
    max_waiting: int = 64
    prefill_chunk_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareCommand:
    """Build this checkpoint's skeleton ahead. Repeats and several checkpoints are fine."""

    checkpoint_id: str
    checkpoint_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachCommand:
    """Bind the engine, for good, to a checkpoint. `context_length` 0: the model's own."""

    instance_id: str
    epoch: int
    model: str
    checkpoint_id: str
    max_concurrency: int
    context_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What an attach gave and took. `skeleton_s` is 0 when it was prepared ahead.

    `stream_s`: of bringing a checkpoint that is larger than the store's pool into the engine's own memory.
    """

    endpoint: str
    map_s: float
    skeleton_s: float
    bind_s: float
    total_s: float
    context_length: int
    parameter_bytes: int
    stream_s: float = 0.0


# Any: a decoded JSON object is a wire boundary.
Message = Mapping[str, Any]
Command = PrepareCommand | AttachCommand


def to_message(value: EngineConfig | Command | Attached) -> dict[str, Any]:
    return asdict(value)

"""What a download is told to bring, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

from firstlight.domain.errors import InvalidInput
from firstlight.domain.names import parse_checkpoint_id
from gpu_worker.store.ssd_cache import CachedCheckpoint

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOrder:
    """What to bring. `expected_digest` is empty for the first conversion anywhere.

    `into_dram`: into the DRAM pool in the same pass, if it has room. `peer_endpoints` are stores that hold
    it, asked before the source, the best first.
    """

    checkpoint_id: str
    source: str
    dtype: str
    expected_digest: str
    into_dram: bool = False
    peer_endpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_checkpoint_id(self.checkpoint_id)
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadState:
    """Progress; the digest and sizes stand in the last one (`phase` done).

    `remote_bytes` were fetched; `ssd_bytes` and `dram_bytes` of the checkpoint stand in those tiers.
    """

    phase: str = "fetch"
    bytes_done: int = 0
    bytes_total: int = 0
    manifest_digest: str = ""
    size_bytes: int = 0
    source_bytes: int = 0
    was_present: bool = False
    came_from_peer: bool = False
    remote_bytes: int = 0
    ssd_bytes: int = 0
    dram_bytes: int = 0
    began_monotonic_s: float = 0.0


def done(state: DownloadState, cached: CachedCheckpoint, *, was_present: bool) -> DownloadState:
    return replace(
        state,
        phase="done",
        bytes_done=state.bytes_total,
        manifest_digest=cached.manifest_digest,
        size_bytes=cached.size_bytes,
        was_present=was_present,
    )

"""How far a load is, as those who wait for it are told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """`moving_at_unix_s` is when its first byte began to move; 0 while it waits, and when it was in DRAM.
    Of a load from SSD it is the loader's own word once that is done; until then, when it was asked to begin.

    `from_tier`: ssd | remote | peer, where its bytes come from; dram when it was resident already.
    """

    bytes_done: int = 0
    bytes_total: int
    queue_s: float = 0.0
    elapsed_s: float = 0.0
    from_tier: str = "ssd"
    is_done: bool = False
    moving_at_unix_s: float = 0.0
    # What the verification of a load from SSD cost its threads; known at its end.
    checksum_cpu_s: float = 0.0


def resident(size_bytes: int) -> LoadState:
    """The finished state of what is in DRAM already."""
    return LoadState(bytes_done=size_bytes, bytes_total=size_bytes, from_tier="dram", is_done=True)

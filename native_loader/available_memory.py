"""What this machine can still give, told before it is asked for."""

from __future__ import annotations

from pathlib import Path

from firstlight.domain.errors import PoolFull


def check_memory(size_bytes: int) -> None:
    """Memory is granted freely and taken page by page: too much of it ends processes, not this call.

    Raises: PoolFull.
    """
    available_bytes = _available_bytes()
    if available_bytes is not None and size_bytes > available_bytes:
        raise PoolFull(
            f"{size_bytes} bytes of memory are needed, {available_bytes} are available",
            size_bytes=size_bytes,
            available_bytes=available_bytes,
        )


def _available_bytes() -> int | None:
    """What the kernel thinks can be taken without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None

"""Why a host can never take a start, whatever of it is free."""

from __future__ import annotations

from collections.abc import Set

from firstlight.domain.fleet import Host, Model
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import HostId


def obstacle(model: Model, host: Host, excluded: Set[HostId] = frozenset()) -> str | None:
    """Why this host cannot take the start even with all its GPUs free; None if it could."""
    if host.host_id in excluded:
        return "failed this start already"
    if host.state is not HostState.READY:
        return f"host is {host.state}"
    size_bytes = model.size_bytes
    if 0 < host.dram_capacity_bytes < size_bytes and not _fits_gpus(model, host):
        return "checkpoint is larger than the DRAM pool and than its GPUs' memory"
    if 0 < host.ssd_capacity_bytes < size_bytes:
        return "checkpoint is larger than the SSD cache"
    return None


def _fits_gpus(model: Model, host: Host) -> bool:
    """What does not fit the pool goes through it, in chunks, to where it is computed with."""
    largest = sorted((gpu.memory_bytes for gpu in host.gpus), reverse=True)[: model.gpu_count]
    return sum(largest) >= model.size_bytes

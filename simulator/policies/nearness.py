"""What policies that look at locality know of it: q + n/b on each host, as in ServerlessLLM's estimator."""

from __future__ import annotations

from firstlight.domain.fleet import Tier
from simulator.cluster import Cluster
from simulator.entities import ModelSpec, SimHost


def load_s(cluster: Cluster, model: ModelSpec, host: SimHost) -> float:
    """Seconds until the checkpoint would be on GPUs of `host`, behind what its links have promised."""
    now_s, loader = cluster.now_s, cluster.loader
    copy_s = cluster.transfers.copy_s(model, host)
    if (arriving_s := host.arriving.get(model.name)) is not None:
        return max(copy_s, arriving_s - now_s)
    tier = host.tier_of(model)
    if tier is Tier.DRAM:
        return copy_s
    disk_s = model.size_bytes / (host.ssd_link.bytes_per_s * loader.ssd_share)
    queue_s = max(0.0, host.ssd_link.until_s - now_s)
    if tier is Tier.SSD:
        return max(copy_s, queue_s + disk_s)
    wire_s = max(0.0, host.down_link.until_s - now_s) + model.size_bytes / host.down_link.bytes_per_s
    return wire_s + copy_s


def free_gpus(host: SimHost, model: ModelSpec) -> list[int] | None:
    """The lowest free ones that are enough; None if there are too few."""
    free = host.free_gpus()
    return free[: model.gpus] if len(free) >= model.gpus else None

"""A host's measured edges as JSON and back, what they start from, and what a start still has to move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstlight.domain.fleet import PRIORS, Edge, EdgeModel, Tier


# Any: a JSON document this module has written.
def edges_from_json(document: Mapping[str, Any]) -> dict[Edge, EdgeModel]:
    """Edges this release knows; others are left out."""
    known = {str(edge): edge for edge in Edge}
    return {
        known[name]: EdgeModel(
            overhead_s=float(figures["overhead_s"]),
            bandwidth_bytes_per_s=float(figures["bandwidth_bytes_per_s"]),
            observations=int(figures["observations"]),
        )
        for name, figures in document.items()
        if name in known
    }


def edges_to_json(edges: Mapping[Edge, EdgeModel]) -> dict[str, object]:
    return {
        str(edge): {
            "overhead_s": model.overhead_s,
            "bandwidth_bytes_per_s": model.bandwidth_bytes_per_s,
            "observations": model.observations,
        }
        for edge, model in edges.items()
    }


def prior_edge(edge: Edge, *, ssd_read_bytes_per_s: float, dram_to_gpu_bytes_per_s: float = 0.0) -> EdgeModel:
    """Before any transfer was seen: the store's own measurement (0: none), else the general prior."""
    prior = PRIORS[edge]
    measured = {Edge.SSD_TO_DRAM: ssd_read_bytes_per_s, Edge.DRAM_TO_GPU: dram_to_gpu_bytes_per_s}.get(edge)
    return EdgeModel(overhead_s=prior.overhead_s, bandwidth_bytes_per_s=measured) if measured else prior


def remaining_bytes(
    edges: Mapping[Edge, EdgeModel],
    *,
    tier: Tier,
    size_bytes: int,
    source_bytes: int,
    elapsed_s: float,
    lands_in_dram: bool = True,
) -> dict[Edge, int]:
    """Bytes a start from `tier`, under way for `elapsed_s`, has still to move, by edge.

    What is fetched goes into DRAM as it comes if `lands_in_dram`, else it is read from SSD afterwards. Each
    edge is taken to run at its bandwidth.
    """
    remaining: dict[Edge, int] = {}
    left_s = max(0.0, elapsed_s)
    if tier is Tier.PEER:
        remaining[Edge.PEER_TO_DRAM], left_s = _move(edges, Edge.PEER_TO_DRAM, size_bytes, left_s)
    if tier is Tier.REMOTE:
        total_bytes = max(size_bytes, source_bytes)
        remaining[Edge.REMOTE_TO_SSD], left_s = _move(edges, Edge.REMOTE_TO_SSD, total_bytes, left_s)
    if tier is Tier.SSD or (tier is not Tier.DRAM and not lands_in_dram):
        remaining[Edge.SSD_TO_DRAM], left_s = _move(edges, Edge.SSD_TO_DRAM, size_bytes, left_s)
    return remaining


def _move(
    edges: Mapping[Edge, EdgeModel], edge: Edge, total_bytes: int, available_s: float
) -> tuple[int, float]:
    """Bytes left and seconds left after moving as much as the time allows."""
    bandwidth = edges.get(edge, PRIORS[edge]).bandwidth_bytes_per_s
    moved_bytes = min(total_bytes, int(available_s * bandwidth))
    return total_bytes - moved_bytes, max(0.0, available_s - total_bytes / bandwidth)

"""An estimate taken apart: every way the bytes could come, edge by edge, with the figures each was made of.

The scheduler computes totals only; this is for a person who asks why. A property test holds both equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firstlight.domain.estimator import (
    Way,
    attach_key,
    attach_seconds,
    control_seconds,
    edge_of,
    fetched_bytes,
    givers_of,
    lands_in_dram,
    peer_edge,
    transfer_seconds,
    ways_of,
)
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Host, Model, Tier
from firstlight.domain.names import HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTerms:
    """One edge that bytes have to cross. `observations` is 0 where nothing but probe and prior is known."""

    edge: Edge
    size_bytes: int
    queued_bytes: int
    overhead_s: float
    bandwidth_bytes_per_s: float
    observations: int
    # Behind what is promised to others, and of these bytes themselves.
    queue_s: float
    transfer_s: float
    # A copy that runs beside the edges before it: of it counts what they do not hide.
    is_beside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WayTerms:
    """One way of starting on a host; `total_s` leaves out what freeing GPUs would add."""

    tier: Tier
    peer_host_id: HostId | None
    edges: tuple[EdgeTerms, ...]
    attach_s: float
    # Of this model on this class of hosts; else the prior.
    is_attach_learned: bool
    control_s: float
    total_s: float


def explain_ways(model: Model, host: Host, snapshot: FleetSnapshot) -> tuple[WayTerms, ...]:
    """All ways of starting `model` on `host`, soonest first; the first is what `estimate_start` says.

    Raises: InvalidEstimate for a host whose edges have no meaning.
    """
    givers = givers_of(model, snapshot)
    ways = [_terms(way, model, host, snapshot, givers) for way in ways_of(model, host, givers)]
    return tuple(sorted(ways, key=lambda way: way.total_s))


def _terms(way: Way, model: Model, host: Host, snapshot: FleetSnapshot, givers: Sequence[Host]) -> WayTerms:
    attach_s, control_s = attach_seconds(model, host, way), control_seconds(snapshot, way.tier)
    return WayTerms(
        tier=way.tier,
        peer_host_id=way.peer_host_id,
        edges=_edges(way, model, host, givers),
        attach_s=attach_s,
        is_attach_learned=attach_key(host.host_class, way.tier) in model.attach_s,
        control_s=control_s,
        total_s=way.seconds + attach_s + control_s,
    )


def _edges(way: Way, model: Model, host: Host, givers: Sequence[Host]) -> tuple[EdgeTerms, ...]:
    crossed: list[EdgeTerms] = []
    if way.tier is Tier.REMOTE:
        link = edge_of(host, Edge.REMOTE_TO_SSD)
        crossed.append(
            _edge(Edge.REMOTE_TO_SSD, link, fetched_bytes(model), _queued(host, Edge.REMOTE_TO_SSD))
        )
    if way.tier is Tier.PEER:
        peer = next(giver for giver in givers if giver.host_id == way.peer_host_id)
        queued = max(_queued(host, Edge.PEER_TO_DRAM), peer.uplink_queued_bytes)
        crossed.append(_edge(Edge.PEER_TO_DRAM, peer_edge(model, host, peer), model.size_bytes, queued))
    is_read = way.tier is Tier.SSD or (way.tier is not Tier.DRAM and not lands_in_dram(model, host))
    if is_read:
        disk = edge_of(host, Edge.SSD_TO_DRAM)
        crossed.append(_edge(Edge.SSD_TO_DRAM, disk, model.size_bytes, _queued(host, Edge.SSD_TO_DRAM)))
    if (bus := host.edges.get(Edge.DRAM_TO_GPU)) is not None:
        share = -(-model.size_bytes // model.gpu_count)
        crossed.append(_edge(Edge.DRAM_TO_GPU, bus, share, 0, is_beside=True))
    return tuple(crossed)


def _queued(host: Host, edge: Edge) -> int:
    return host.queued_bytes.get(edge, 0)


def _edge(
    edge: Edge, model: EdgeModel, size_bytes: int, queued_bytes: int, *, is_beside: bool = False
) -> EdgeTerms:
    return EdgeTerms(
        edge=edge,
        size_bytes=size_bytes,
        queued_bytes=queued_bytes,
        overhead_s=model.overhead_s,
        bandwidth_bytes_per_s=model.bandwidth_bytes_per_s,
        observations=model.observations,
        queue_s=queued_bytes / model.bandwidth_bytes_per_s,
        transfer_s=transfer_seconds(model, size_bytes),
        is_beside=is_beside,
    )

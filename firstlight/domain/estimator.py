"""The startup-time estimator: how long would a start take on this host, term by term.

load on a host = q + overhead + max over pipelined edges of n/b (ServerlessLLM, OSDI'24, §5.1: q + n/b;
pipelined tiers count only the slowest). What comes from a source or a peer lands in DRAM as it comes, beside
its way to the SSD, so nothing is read back; only a checkpoint larger than the pool is read from SSD again.
dram→gpu runs beside all of these: of it counts what they do not hide. A host without that edge computes in
the memory that the bytes are in already: a binding, not a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.fleet import PRIORS, Edge, EdgeModel, FleetSnapshot, Host, Model, Tier
from firstlight.domain.fleet_index import index_of
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import HostId

PRIOR_ATTACH_S = 0.08
PRIOR_CONTROL_S = 0.05
# Each candidate host is looked at with each of these.
GIVERS_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class StartEstimate:
    """Seconds per phase of a start; `total_s` is decision → ready to take a request."""

    queue_s: float
    download_s: float
    load_s: float
    attach_s: float
    control_s: float
    tier: Tier
    # Whose store the bytes come from, if tier is PEER.
    peer_host_id: HostId | None = None
    # How much longer than its bytes' way into DRAM the start waits for its GPUs to be freed.
    free_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.queue_s + self.download_s + self.load_s + self.free_s + self.attach_s + self.control_s


def transfer_seconds(edge: EdgeModel, size_bytes: int) -> float:
    """`overhead_s + size_bytes / bandwidth`. Raises: InvalidEstimate for a size or model without meaning."""
    if size_bytes < 0:
        raise InvalidEstimate(f"size_bytes is {size_bytes}, must not be negative")
    if not edge.bandwidth_bytes_per_s > 0 or edge.overhead_s < 0:
        raise InvalidEstimate(
            f"an edge needs a positive bandwidth and no negative overhead, not {edge.bandwidth_bytes_per_s} "
            f"and {edge.overhead_s}"
        )
    return edge.overhead_s + size_bytes / edge.bandwidth_bytes_per_s if size_bytes else 0.0


def estimate_start(
    model: Model, host: Host, snapshot: FleetSnapshot, *, givers: Sequence[Host] = ()
) -> StartEstimate:
    """Predict a start of `model` on `host` behind what is promised there already.

    Only edges that the bytes still have to cross count, and only their queues. What the host lacks comes from
    the source or from one of `givers`, whichever is sooner.
    Raises: InvalidEstimate for a host whose edges have no meaning.
    """
    way = soonest(ways_of(model, host, givers), model, host)
    return StartEstimate(
        queue_s=way.queue_s,
        download_s=way.download_s,
        load_s=way.load_s,
        attach_s=attach_seconds(model, host, way),
        control_s=control_seconds(snapshot, way.tier),
        tier=way.tier,
        peer_host_id=way.peer_host_id,
    )


def ways_of(model: Model, host: Host, givers: Sequence[Host] = ()) -> list[Way]:
    """Every way in which the checkpoint could come into the host's DRAM."""
    here = host.tiers.get(model.checkpoint_id, Tier.REMOTE)
    if here is not Tier.REMOTE:
        return [_from_here(model, host, here)]
    return [_from_source(model, host), *(_from_peer(model, host, peer) for peer in givers)]


def soonest(ways: Sequence[Way], model: Model, host: Host) -> Way:
    """The first of equals: the source, then the givers in their order."""
    if len(ways) == 1:
        return ways[0]
    return min(ways, key=lambda way: way.seconds + attach_seconds(model, host, way))


def attach_seconds(model: Model, host: Host, way: Way) -> float:
    """As learned; before that the prior, and what of the copy to the GPUs the bytes' way does not hide."""
    learned = model.attach_s.get(attach_key(host.host_class, way.tier))
    if learned is not None:
        return learned
    return PRIOR_ATTACH_S + max(0.0, copy_seconds(model, host) - way.download_s - way.load_s)


def copy_seconds(model: Model, host: Host) -> float:
    """DRAM to GPUs, each over its own link; nothing on a host that computes in the same memory."""
    edge = host.edges.get(Edge.DRAM_TO_GPU)
    return 0.0 if edge is None else transfer_seconds(edge, -(-model.size_bytes // model.gpu_count))


def control_seconds(snapshot: FleetSnapshot, tier: Tier) -> float:
    return snapshot.control_s if tier is Tier.DRAM else snapshot.control_beside_bytes_s


def lands_in_dram(model: Model, host: Host) -> bool:
    """Whether what is fetched goes straight into the pool: all of it must fit there. 0: of unknown size."""
    return not 0 < host.dram_capacity_bytes < model.size_bytes


def attach_key(host_class: str, tier: Tier) -> str:
    """Under which seconds to attach are learned: beside a load, only what that does not hide counts."""
    return host_class if tier is Tier.DRAM else f"{host_class} beside a load"


def move_key(model_name: str, host_class: str) -> str:
    """Under which the cost of moving requests is learned; the class is the destination's."""
    return f"{model_name} on {host_class}"


def givers_of(model: Model, snapshot: FleetSnapshot) -> tuple[Host, ...]:
    """Hosts whose stores would give the checkpoint to others, the best few, best first.

    Which is best hardly depends on who takes: memory before disk, then the shortest queue of its uplink.
    """
    able = [
        one
        for one in index_of(snapshot).holders_of(model.checkpoint_id)
        if one.host.peer_endpoint and one.host.state is not HostState.LOST
    ]
    best: list[Host] = []
    # A popular checkpoint is on most disks of a fleet: those are looked at only if memories do not suffice.
    for is_in_dram, edge in ((True, Edge.PEER_TO_DRAM), (False, Edge.SSD_TO_DRAM)):
        if len(best) < GIVERS_AT_MOST:
            alike = [one.host for one in able if one.is_in_dram is is_in_dram]
            alike.sort(key=attrgetter("host_id"))
            best += sorted(alike, key=partial(_giving_s, model, edge))
    return tuple(best[:GIVERS_AT_MOST])


def _giving_s(model: Model, edge: Edge, host: Host) -> float:
    """When a giver would be done, as far as that depends on it alone."""
    return (host.uplink_queued_bytes + model.size_bytes) / edge_of(host, edge).bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way for the bytes to come into a host's DRAM."""

    tier: Tier
    queue_s: float = 0.0
    download_s: float = 0.0
    load_s: float = 0.0
    peer_host_id: HostId | None = None

    @property
    def seconds(self) -> float:
        return self.queue_s + self.download_s + self.load_s


def edge_of(host: Host, edge: Edge) -> EdgeModel:
    return host.edges.get(edge, PRIORS[edge])


def peer_edge(model: Model, host: Host, peer: Host) -> EdgeModel:
    """From the peer's store to this host's: a peer that has it on SSD gives it at that disk's rate."""
    edge = edge_of(host, Edge.PEER_TO_DRAM)
    if peer.tiers[model.checkpoint_id] is Tier.DRAM:
        return edge
    disk = edge_of(peer, Edge.SSD_TO_DRAM).bandwidth_bytes_per_s
    return EdgeModel(edge.overhead_s, min(edge.bandwidth_bytes_per_s, disk), edge.observations)


def fetched_bytes(model: Model) -> int:
    """What a download counts by: the bytes that come out, not those that go in.

    A 4-bit GGUF is eight times smaller than the weights it becomes; conversion takes its time, not the link.
    """
    return max(model.size_bytes, model.source_bytes)


def _queued_s(host: Host, edge: Edge) -> float:
    return host.queued_bytes.get(edge, 0) / edge_of(host, edge).bandwidth_bytes_per_s


def _from_here(model: Model, host: Host, tier: Tier) -> Way:
    if tier is Tier.DRAM:
        return Way(tier=tier)
    return Way(
        tier=tier,
        queue_s=_queued_s(host, Edge.SSD_TO_DRAM),
        load_s=transfer_seconds(edge_of(host, Edge.SSD_TO_DRAM), model.size_bytes),
    )


def _from_source(model: Model, host: Host) -> Way:
    queue_s, load_s = _queued_s(host, Edge.REMOTE_TO_SSD), 0.0
    if not lands_in_dram(model, host):
        load = _from_here(model, host, Tier.SSD)
        queue_s, load_s = queue_s + load.queue_s, load.load_s
    return Way(
        tier=Tier.REMOTE,
        queue_s=queue_s,
        download_s=transfer_seconds(edge_of(host, Edge.REMOTE_TO_SSD), fetched_bytes(model)),
        load_s=load_s,
    )


def _from_peer(model: Model, host: Host, peer: Host) -> Way:
    edge = peer_edge(model, host, peer)
    load = Way(tier=Tier.PEER) if lands_in_dram(model, host) else _from_here(model, host, Tier.SSD)
    # Two links, each with a queue of its own; the longer one is waited for.
    queued_bytes = max(host.queued_bytes.get(Edge.PEER_TO_DRAM, 0), peer.uplink_queued_bytes)
    return Way(
        tier=Tier.PEER,
        queue_s=queued_bytes / edge.bandwidth_bytes_per_s + load.queue_s,
        download_s=transfer_seconds(edge, model.size_bytes),
        load_s=load.load_s,
        peer_host_id=peer.host_id,
    )

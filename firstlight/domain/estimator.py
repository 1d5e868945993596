"""The startup-time estimator: how long would a start take on this host, term by term.

load on a host = q + Σ overhead + max over pipelined edges of n/b (ServerlessLLM, OSDI'24, §5.1:
q + n/b; pipelined tiers count only the slowest). Here remote→ssd converts the whole checkpoint before it
is read, so it is a stage of its own; peer→dram brings it as it is; ssd→dram and dram→gpu pipeline on GPU
hosts and are sequential where "gpu" is the same memory (its bandwidth term is then zero cost: a binding,
not a copy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Host, Model, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import HostId

# Sane before anything was measured: a slow link, a small NVMe, pageable copies.
PRIORS: Mapping[Edge, EdgeModel] = {
    Edge.REMOTE_TO_SSD: EdgeModel(overhead_s=4.0, bandwidth_bytes_per_s=100e6),
    # Ten-gigabit Ethernet, and a connection.
    Edge.PEER_TO_DRAM: EdgeModel(overhead_s=0.02, bandwidth_bytes_per_s=1.0e9),
    Edge.SSD_TO_DRAM: EdgeModel(overhead_s=0.01, bandwidth_bytes_per_s=1.5e9),
    Edge.DRAM_TO_GPU: EdgeModel(overhead_s=0.0, bandwidth_bytes_per_s=10e9),
}
PRIOR_ATTACH_S = 0.08
PRIOR_CONTROL_S = 0.05
# An overhead of so many times the usual one is no overhead, but recovery from something.
MISHAP_FACTOR = 10.0
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


@dataclass(frozen=True, slots=True)
class TransferObservation:
    size_bytes: int
    elapsed_s: float


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
    here = host.tiers.get(model.checkpoint_id, Tier.REMOTE)
    ways = [_from_source(model, host)] if here is Tier.REMOTE else [_from_here(model, host, here)]
    if here is Tier.REMOTE:
        ways += [_from_peer(model, host, peer) for peer in givers]
    # The first of equals: the source, then the givers in their order.
    way = min(ways, key=lambda one: one.seconds)
    return StartEstimate(
        queue_s=way.queue_s,
        download_s=way.download_s,
        load_s=way.load_s,
        attach_s=model.attach_s.get(attach_key(host.host_class, way.tier), PRIOR_ATTACH_S),
        control_s=snapshot.control_s if way.tier is Tier.DRAM else snapshot.control_beside_bytes_s,
        tier=way.tier,
        peer_host_id=way.peer_host_id,
    )


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
    givers = [
        host
        for host in snapshot.hosts
        if host.peer_endpoint
        and host.state is not HostState.LOST
        and host.tiers.get(model.checkpoint_id) in (Tier.SSD, Tier.DRAM)
    ]

    def wait_s(host: Host) -> tuple[bool, float, str]:
        is_on_disk = host.tiers[model.checkpoint_id] is not Tier.DRAM
        edge = _edge(host, Edge.SSD_TO_DRAM if is_on_disk else Edge.PEER_TO_DRAM)
        queued_s = (host.uplink_queued_bytes + model.size_bytes) / edge.bandwidth_bytes_per_s
        return is_on_disk, queued_s, host.host_id

    return tuple(sorted(givers, key=wait_s)[:GIVERS_AT_MOST])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way for the bytes to come into a host's DRAM."""

    tier: Tier
    queue_s: float = 0.0
    download_s: float = 0.0
    load_s: float = 0.0
    peer_host_id: HostId | None = None

    @property
    def seconds(self) -> float:
        return self.queue_s + self.download_s + self.load_s


def _edge(host: Host, edge: Edge) -> EdgeModel:
    return host.edges.get(edge, PRIORS[edge])


def _queued_s(host: Host, edge: Edge) -> float:
    return host.queued_bytes.get(edge, 0) / _edge(host, edge).bandwidth_bytes_per_s


def _from_here(model: Model, host: Host, tier: Tier) -> _Way:
    if tier is Tier.DRAM:
        return _Way(tier=tier)
    return _Way(
        tier=tier,
        queue_s=_queued_s(host, Edge.SSD_TO_DRAM),
        load_s=transfer_seconds(_edge(host, Edge.SSD_TO_DRAM), model.size_bytes),
    )


def _from_source(model: Model, host: Host) -> _Way:
    # By the bytes that come out, not those that go in: a 4-bit GGUF is eight times smaller than
    # the weights it becomes, and conversion, not the link, is what takes its time.
    size_bytes = max(model.size_bytes, model.source_bytes)
    load = _from_here(model, host, Tier.SSD)
    return _Way(
        tier=Tier.REMOTE,
        queue_s=load.queue_s + _queued_s(host, Edge.REMOTE_TO_SSD),
        download_s=transfer_seconds(_edge(host, Edge.REMOTE_TO_SSD), size_bytes),
        load_s=load.load_s,
    )


def _from_peer(model: Model, host: Host, peer: Host) -> _Way:
    """The bytes go into DRAM as they come. A peer that has them on SSD gives them at that disk's rate."""
    edge = _edge(host, Edge.PEER_TO_DRAM)
    bandwidth = edge.bandwidth_bytes_per_s
    if peer.tiers[model.checkpoint_id] is not Tier.DRAM:
        bandwidth = min(bandwidth, _edge(peer, Edge.SSD_TO_DRAM).bandwidth_bytes_per_s)
    # Two links, each with a queue of its own; the longer one is waited for.
    queued_bytes = max(host.queued_bytes.get(Edge.PEER_TO_DRAM, 0), peer.uplink_queued_bytes)
    return _Way(
        tier=Tier.PEER,
        queue_s=queued_bytes / bandwidth,
        download_s=transfer_seconds(EdgeModel(edge.overhead_s, bandwidth), model.size_bytes),
        peer_host_id=peer.host_id,
    )


def fit_edge(observations: Sequence[TransferObservation], prior: EdgeModel, *, weight: int = 2) -> EdgeModel:
    """Fit overhead and bandwidth to what was seen, robust to outliers.

    Bandwidth is the Theil–Sen slope (median over pairs of Δs/Δn) where sizes differ enough, else the
    median of n / (s − overhead); overhead is the median residual. The prior counts as `weight`
    observations in the medians, so that one odd first transfer cannot ruin the next decisions.
    """
    seen = [row for row in observations if row.size_bytes > 0 and row.elapsed_s > 0]
    if not seen:
        return prior
    pseudo = [row.elapsed_s - prior.overhead_s for row in seen]
    per_byte = [max(s, 1e-6) / row.size_bytes for s, row in zip(pseudo, seen, strict=True)]
    slopes = _pair_slopes(seen)
    chosen = slopes if len(slopes) >= 3 else per_byte
    shrink = [1 / prior.bandwidth_bytes_per_s] * max(0, weight - len(seen) // 2)
    seconds_per_byte = max(median([*chosen, *shrink]), 1e-15)
    overhead_s = max(0.0, median(row.elapsed_s - row.size_bytes * seconds_per_byte for row in seen))
    return EdgeModel(
        overhead_s=overhead_s, bandwidth_bytes_per_s=1 / seconds_per_byte, observations=len(seen)
    )


def _pair_slopes(rows: Sequence[TransferObservation]) -> list[float]:
    slopes = []
    for index, left in enumerate(rows):
        for right in rows[index + 1 :]:
            delta_bytes = right.size_bytes - left.size_bytes
            # Sizes within a quarter of each other say nothing of the slope, only of the noise.
            if abs(delta_bytes) * 4 > max(left.size_bytes, right.size_bytes):
                slope = (right.elapsed_s - left.elapsed_s) / delta_bytes
                if slope > 0:
                    slopes.append(slope)
    return slopes


def learned_seconds(observed_s: Iterable[float], prior_s: float) -> float:
    """Median of the last observations; the prior stands until there is one."""
    rows = [seconds for seconds in observed_s if seconds >= 0]
    return median(rows) if rows else prior_s


def learned_overhead_s(observed_s: Iterable[float], prior_s: float) -> float:
    """As `learned_seconds`, without what only a mishap explains: a worker killed midway adds seconds.

    A mishap only ever adds, so the quicker quarter says what is usual. The prior is one voice among them.
    """
    rows = sorted(seconds for seconds in observed_s if seconds >= 0)
    voices = sorted([*rows, prior_s])
    usual_s = voices[(len(voices) - 1) // 4]
    kept = [seconds for seconds in rows if seconds <= MISHAP_FACTOR * usual_s]
    return median(kept) if kept else usual_s

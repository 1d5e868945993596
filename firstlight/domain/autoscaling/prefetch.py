"""What to bring nearer before anybody asks: likely models into DRAM, popular ones onto more SSDs.

A pass spends a budget of bytes, best value by the byte first, and pushes nothing out that is worth more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from firstlight.domain.errors import InvalidSettings
from firstlight.domain.estimator import StartEstimate, estimate_start, givers_of
from firstlight.domain.fleet import FleetSnapshot, Host, Model, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId

# Of each model and tier; a pass over a thousand hosts stays short.
HOSTS_PROPOSED = 32


@dataclass(frozen=True, slots=True)
class Likely:
    """A model and P(a start of it is wanted before the pass after next)."""

    model: Model
    need: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchBudget:
    """What one pass may move, and how far it may go."""

    bytes_per_pass: int
    # Prefetching fills a DRAM pool, and an SSD cache, up to this share and no further.
    dram_share: float = 0.8
    ssd_share: float = 0.8
    copies_at_most: int = 3
    # In DRAM one copy serves all who start there; further ones pay where bursts need several hosts at once.
    dram_copies_at_most: int = 1
    need_at_least: float = 0.2
    # Only so many of the likeliest models are looked at: a pass over thousands stays short.
    models_at_most: int = 64

    def __post_init__(self) -> None:
        shares = (self.dram_share, self.ssd_share, self.need_at_least)
        if self.bytes_per_pass < 0 or not all(0 <= share <= 1 for share in shares):
            raise InvalidSettings("a prefetch budget needs bytes of 0 or more, and shares between 0 and 1")


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Bring `model` into this tier of this host. `saves_s`: expected seconds of waiting saved."""

    host_id: HostId
    model: Model
    tier: Tier
    size_bytes: int
    saves_s: float
    reason: str


@dataclass(slots=True)
class _Room:
    """Bytes that hosts hold by tier, of checkpoints whose size is known, and what the pass adds."""

    budget: PrefetchBudget
    used: dict[tuple[HostId, Tier], int] = field(default_factory=lambda: defaultdict(int))

    def has(self, host: Host, tier: Tier, size_bytes: int) -> bool:
        is_dram = tier is Tier.DRAM
        capacity = host.dram_capacity_bytes if is_dram else host.ssd_capacity_bytes
        share = self.budget.dram_share if is_dram else self.budget.ssd_share
        # Nothing is known of what a store without a capacity can hold: it is left alone.
        return self.used[host.host_id, tier] + size_bytes <= share * capacity

    def take(self, host: Host, tier: Tier, size_bytes: int) -> None:
        self.used[host.host_id, tier] += size_bytes


def plan_prefetch(
    likely: Sequence[Likely],
    snapshot: FleetSnapshot,
    budget: PrefetchBudget,
    *,
    sizes: Mapping[CheckpointId, int],
) -> tuple[Prefetch, ...]:
    """The pass's work, best value by the byte first. `sizes`: bytes of every checkpoint that hosts hold.

    Laws: never more bytes than the budget, nor than a tier's share; nothing that is there already; a model
    below `need_at_least` not at all.
    """
    room = _room(snapshot, budget, sizes)
    busy = _busy_share(snapshot)
    chosen: list[Prefetch] = []
    left_bytes = budget.bytes_per_pass
    wanted = sorted(
        (one for one in likely if one.need >= budget.need_at_least),
        key=lambda one: (-one.need, one.model.name),
    )[: budget.models_at_most]
    proposals = [proposal for one in wanted for proposal in _proposals(one, snapshot, budget, busy)]
    hosts = {host.host_id: host for host in snapshot.hosts}
    done: set[tuple[str, Tier]] = set()
    for proposal in sorted(proposals, key=_preference):
        host = hosts[proposal.host_id]
        key = (proposal.model.name, proposal.tier)
        if (
            key in done
            or proposal.size_bytes > left_bytes
            or not room.has(host, proposal.tier, proposal.size_bytes)
        ):
            continue
        done.add(key)
        left_bytes -= proposal.size_bytes
        room.take(host, proposal.tier, proposal.size_bytes)
        chosen.append(proposal)
    return tuple(chosen)


def _preference(proposal: Prefetch) -> tuple[float, str, str]:
    return (-proposal.saves_s / proposal.size_bytes, proposal.model.name, proposal.host_id)


def _room(snapshot: FleetSnapshot, budget: PrefetchBudget, sizes: Mapping[CheckpointId, int]) -> _Room:
    room = _Room(budget)
    for host in snapshot.hosts:
        for checkpoint_id, tier in host.tiers.items():
            size_bytes = sizes.get(checkpoint_id, 0)
            # What is in DRAM came through the SSD, and mostly is there still.
            room.take(host, Tier.SSD, size_bytes)
            if tier is Tier.DRAM:
                room.take(host, Tier.DRAM, size_bytes)
    return room


def _busy_share(snapshot: FleetSnapshot) -> float:
    """Share of the GPUs that a start could not have: the chance that a near host has none."""
    gpus = [gpu for host in snapshot.hosts for gpu in host.gpus]
    idle = _idle_gpus(snapshot)
    held = sum(gpu.instance_id is not None and gpu.instance_id not in idle for gpu in gpus)
    return held / len(gpus) if gpus else 0.0


def _idle_gpus(snapshot: FleetSnapshot) -> frozenset[str]:
    """Instances that a start may end for their GPUs."""
    return frozenset(one.instance_id for one in snapshot.running if one.idle_s is not None)


def _proposals(
    one: Likely, snapshot: FleetSnapshot, budget: PrefetchBudget, busy: float
) -> Iterable[Prefetch]:
    able = [
        host
        for host in snapshot.hosts
        if host.state is HostState.READY and len(host.gpus) >= one.model.gpu_count
    ]
    if not able or one.model.size_bytes <= 0:
        return
    givers = givers_of(one.model, snapshot)
    now = {host.host_id: estimate_start(one.model, host, snapshot, givers=givers) for host in able}
    idle = _idle_gpus(snapshot)
    # Where a GPU may be had and the bytes are near; beyond the best few one host is as good as another.
    able.sort(key=lambda host: (not _is_open(one.model, host, idle), now[host.host_id].total_s, host.host_id))
    yield from _into_dram(one, able, snapshot, now, busy, budget)
    yield from _onto_ssd(one, able, snapshot, now, busy, budget)


def _is_open(model: Model, host: Host, idle: frozenset[str]) -> bool:
    """Whether a start could have its GPUs there now."""
    held = sum(gpu.instance_id is not None and gpu.instance_id not in idle for gpu in host.gpus)
    return len(host.gpus) - held >= model.gpu_count


def _into_dram(
    one: Likely,
    able: list[Host],
    snapshot: FleetSnapshot,
    now: Mapping[HostId, StartEstimate],
    busy: float,
    budget: PrefetchBudget,
) -> Iterable[Prefetch]:
    """Where a copy in DRAM makes a start sooner: a further one where the others are busy."""
    copies = sum(host.tiers.get(one.model.checkpoint_id) is Tier.DRAM for host in able)
    if copies >= budget.dram_copies_at_most:
        return
    idle = _idle_gpus(snapshot)
    soonest_s = min(estimate.total_s for estimate in now.values())
    without = (host for host in able if host.tiers.get(one.model.checkpoint_id) is not Tier.DRAM)
    for host in islice(without, HOSTS_PROPOSED):
        after = _estimate_at(one.model, host, snapshot, Tier.DRAM)
        # A host without a GPU for it now may have none then either.
        chance = 1.0 if _is_open(one.model, host, idle) else 1.0 - busy
        # The copy comes the way a start's bytes would: the nearer the host has them, the cheaper it is.
        before_s = now[host.host_id].total_s if copies else soonest_s
        saves_s = one.need * chance * busy**copies * (before_s - after.total_s)
        if saves_s > 0:
            yield Prefetch(
                host_id=host.host_id,
                model=one.model,
                tier=Tier.DRAM,
                size_bytes=one.model.size_bytes,
                saves_s=saves_s,
                reason=f"wanted with {one.need:.0%}, {before_s - after.total_s:.1f} s sooner from DRAM",
            )


def _onto_ssd(
    one: Likely,
    able: list[Host],
    snapshot: FleetSnapshot,
    now: Mapping[HostId, StartEstimate],
    busy: float,
    budget: PrefetchBudget,
) -> Iterable[Prefetch]:
    """A further copy pays when the hosts that have one are all busy."""
    copies = sum(one.model.checkpoint_id in host.tiers for host in snapshot.hosts)
    if copies >= budget.copies_at_most:
        return
    without = (host for host in able if one.model.checkpoint_id not in host.tiers)
    for host in islice(without, HOSTS_PROPOSED):
        after = _estimate_at(one.model, host, snapshot, Tier.SSD)
        sooner_s = now[host.host_id].total_s - after.total_s
        saves_s = one.need * busy**copies * sooner_s
        if saves_s > 0:
            yield Prefetch(
                host_id=host.host_id,
                model=one.model,
                tier=Tier.SSD,
                size_bytes=one.model.size_bytes,
                saves_s=saves_s,
                reason=f"wanted with {one.need:.0%}, on {copies} hosts of which {busy:.0%} are busy",
            )


def _estimate_at(model: Model, host: Host, snapshot: FleetSnapshot, tier: Tier) -> StartEstimate:
    """A start there as if the checkpoint were in this tier already."""
    moved = replace(host, tiers={model.checkpoint_id: tier})
    return estimate_start(model, moved, snapshot)

"""Every plan on a small fleet, one after the other, found without the scheduler's code and held against it.

Only the estimator, and the two constants that say what a plan takes from others, are taken from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from firstlight.domain.estimator import estimate_start, givers_of, move_key
from firstlight.domain.fleet import FleetSnapshot, Host, Model, Running, StartRequest, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.migration import PRIOR_MOVE
from firstlight.domain.scheduler import Migrate, Place, VictimAction
from firstlight.domain.ways_out import MOVE_PRICE_S, SOON_S


@dataclass(frozen=True)
class Exit:
    """How one instance leaves: it ends, or goes to a host where another ends for it or is taken over."""

    one: Running
    to: Host | None = None
    evicted: Running | None = None
    reused: Running | None = None


@dataclass(frozen=True)
class Total:
    total_s: float
    cost_s: float


def could_take(model: Model, host: Host, request: StartRequest) -> bool:
    memory = sum(sorted((gpu.memory_bytes for gpu in host.gpus), reverse=True)[: model.gpu_count])
    fits_pool = host.dram_capacity_bytes in (0, None) or host.dram_capacity_bytes >= model.size_bytes
    return (
        host.state == HostState.READY
        and host.host_id not in request.excluded_hosts
        and (fits_pool or memory >= model.size_bytes)
        and (host.ssd_capacity_bytes == 0 or host.ssd_capacity_bytes >= model.size_bytes)
    )


def free(host: Host) -> int:
    return sum(1 for gpu in host.gpus if gpu.instance_id is None)


def may_touch(one: Running, request: StartRequest) -> bool:
    return one.model.priority <= request.model.priority and one.model.name != request.model.name


def may_end(one: Running, request: StartRequest, snapshot: FleetSnapshot) -> bool:
    if one.idle_s is None or not may_touch(one, request):
        return False
    alike = [other for other in snapshot.running if other.model.name == one.model.name]
    busy = [other for other in alike if other.idle_s is None]
    idle = sorted((other.idle_s, other.instance_id) for other in alike if other.idle_s is not None)
    kept = idle[: max(0, one.model.min_instances - len(busy))]
    return (one.idle_s, one.instance_id) not in kept


def loss_s(one: Running, snapshot: FleetSnapshot) -> float:
    host = next(host for host in snapshot.hosts if host.host_id == one.host_id)
    expected = one.expected_idle_for_s if one.expected_idle_for_s is not None else one.idle_s
    return estimate_start(one.model, host, snapshot).total_s * SOON_S / (SOON_S + (expected or 0.0))


def exits(one: Running, request: StartRequest, snapshot: FleetSnapshot) -> Iterator[Exit]:
    if not may_touch(one, request):
        return
    if may_end(one, request, snapshot):
        yield Exit(one)
    if not one.is_movable:
        return
    for host in snapshot.hosts:
        usable = host.state == HostState.READY and host.host_id not in request.excluded_hosts
        if host.host_id == one.host_id or not usable:
            continue
        there = [other for other in snapshot.running if other.host_id == host.host_id]
        for other in there:
            if other.idle_s is not None and other.model.name == one.model.name:
                yield Exit(one, host, reused=other)
        is_near = host.tiers.get(one.model.checkpoint_id) in (Tier.SSD, Tier.DRAM)
        if not is_near or not could_take(one.model, host, request):
            continue
        if free(host) >= one.model.gpu_count:
            yield Exit(one, host)
            continue
        for other in there:
            is_enough = free(host) + len(other.gpu_indices) >= one.model.gpu_count
            if is_enough and other.model.name != one.model.name and may_end(other, request, snapshot):
                yield Exit(one, host, evicted=other)


def have_room(plan: tuple[Exit, ...]) -> bool:
    for host_id in {way.to.host_id for way in plan if way.to is not None}:
        there = [way for way in plan if way.to is not None and way.to.host_id == host_id]
        if any(way.evicted or way.reused for way in there):
            if len(there) > 1:
                return False
        elif sum(way.one.model.gpu_count for way in there) > free(there[0].to or NOWHERE):
            return False
    return True


NOWHERE = Host(host_id="-", host_class="", state=HostState.LOST, gpus=(), edges={})  # type: ignore[arg-type]


def seconds(way: Exit, plan: tuple[Exit, ...], snapshot: FleetSnapshot) -> float:
    if way.to is None:
        return snapshot.evict_s
    move = snapshot.moves.get(move_key(way.one.model.name, way.to.host_class), PRIOR_MOVE)
    moving_s = move.seconds(way.one.tokens)
    if way.reused is not None:
        return moving_s
    start = estimate_start(way.one.model, way.to, snapshot)
    total_s = moving_s + start.total_s + (snapshot.evict_s if way.evicted is not None else 0.0)
    for other in plan:
        # Who loads from the same disk at the same time.
        if other is not way and other.to == way.to and start.tier is Tier.SSD:
            tier = way.to.tiers.get(other.one.model.checkpoint_id)
            alone = replace(way.to, queued_bytes={})
            if tier is Tier.SSD:
                loading = estimate_start(other.one.model, alone, snapshot)
                overhead_s = estimate_start(replace(other.one.model, size_bytes=1), alone, snapshot).load_s
                total_s += max(0.0, loading.load_s - overhead_s)
    return total_s


def price_s(way: Exit, snapshot: FleetSnapshot) -> float:
    if way.to is None:
        return loss_s(way.one, snapshot)
    moved_s = MOVE_PRICE_S * max(1, way.one.requests)
    return moved_s + (loss_s(way.evicted, snapshot) if way.evicted is not None else 0.0)


def total_of(host: Host, plan: tuple[Exit, ...], request: StartRequest, snapshot: FleetSnapshot) -> Total:
    model = request.model
    base_s = estimate_start(model, host, snapshot, givers=givers_of(model, snapshot)).total_s
    if not plan:
        return Total(base_s, base_s)
    loaded = replace(host, tiers={**host.tiers, model.checkpoint_id: Tier.DRAM})
    hidden_s = base_s - estimate_start(model, loaded, snapshot).total_s
    if 0 < host.dram_capacity_bytes < model.size_bytes:
        hidden_s = 0.0
    latest_s = max(seconds(way, plan, snapshot) for way in plan)
    total_s = base_s + max(0.0, latest_s - max(0.0, hidden_s))
    return Total(total_s, total_s + sum(price_s(way, snapshot) for way in plan))


def all_plans(request: StartRequest, snapshot: FleetSnapshot) -> Iterator[Total]:
    """Every plan that can begin now."""
    for host in snapshot.hosts:
        if not could_take(request.model, host, request):
            continue
        needed = request.model.gpu_count - free(host)
        if needed <= 0:
            yield total_of(host, (), request, snapshot)
            continue
        if not request.may_free:
            continue
        there = [one for one in snapshot.running if one.host_id == host.host_id]
        for count in range(1, len(there) + 1):
            for chosen in combinations(there, count):
                if sum(len(one.gpu_indices) for one in chosen) < needed:
                    continue
                for plan in product(*(tuple(exits(one, request, snapshot)) for one in chosen)):
                    if have_room(plan):
                        yield total_of(host, plan, request, snapshot)


def read_plan(
    decision: Place | Migrate, request: StartRequest, snapshot: FleetSnapshot
) -> tuple[Host, tuple[Exit, ...]]:
    """The plan that a decision describes, checked for being possible."""
    hosts = {host.host_id: host for host in snapshot.hosts}
    host = hosts[decision.host_id]
    if isinstance(decision, Place):
        return host, ()
    running = {one.instance_id: one for one in snapshot.running}
    ended = [running[v.instance_id] for v in decision.victims if v.action is VictimAction.EVICT]
    found = [Exit(one) for one in ended if one.host_id == host.host_id]
    for victim in decision.victims:
        if victim.action is VictimAction.EVICT:
            continue
        assert victim.to_host is not None
        to, one = hosts[victim.to_host], running[victim.instance_id]
        if victim.to_instance_id is not None:
            reused = running[victim.to_instance_id]
            assert victim.to_gpu_indices == reused.gpu_indices
            found.append(Exit(one, to, reused=reused))
            continue
        evicted = [other for other in ended if other.host_id == to.host_id]
        assert len(evicted) <= 1
        gpus = {gpu.index for gpu in to.gpus if gpu.instance_id is None}
        gpus |= {index for other in evicted for index in other.gpu_indices}
        assert set(victim.to_gpu_indices) <= gpus
        assert len(set(victim.to_gpu_indices)) == one.model.gpu_count
        found.append(Exit(one, to, evicted=evicted[0] if evicted else None))
    for way in found:
        assert way in tuple(exits(way.one, request, snapshot))
    assert have_room(tuple(found))
    return host, tuple(found)

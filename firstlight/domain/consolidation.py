"""Emptying a nearly idle host onto busier ones, so that whole hosts are free: a pure function of a snapshot.

A host is emptied only onto hosts that are fuller than it, so a fleet comes to rest: each pass leaves one more
host with nothing on it, and never two that exchange what they run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firstlight.domain.fleet import FleetSnapshot, Host, Running, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import HostId, InstanceId

NEAR = (Tier.DRAM, Tier.SSD)


@dataclass(frozen=True, slots=True)
class ConsolidationMove:
    instance_id: InstanceId
    to_host: HostId


@dataclass(frozen=True, slots=True)
class Consolidation:
    """Moves after which nothing but what ends by itself is left on `host_id`."""

    host_id: HostId
    requests: int
    moves: tuple[ConsolidationMove, ...]


def consolidate(snapshot: FleetSnapshot, *, most_requests: int) -> Consolidation | None:
    """The host with the fewest tokens to move among those that run at most `most_requests`; None if none can.

    All of it or nothing: each instance must find room on a fuller host that has its checkpoint near. Idle
    instances beyond their model's minimum are left to end by themselves.
    """
    running = _by_host(snapshot)
    plans = [
        (sum(one.tokens for one in running[host.host_id]), found)
        for host in snapshot.hosts
        if _may_be_emptied(host, running[host.host_id], snapshot, most_requests)
        if (found := _empty(host, snapshot, running)) is not None
    ]
    return min(plans, key=lambda plan: (plan[0], plan[1].host_id))[1] if plans else None


def _by_host(snapshot: FleetSnapshot) -> Mapping[HostId, list[Running]]:
    found: dict[HostId, list[Running]] = defaultdict(list)
    for one in snapshot.running:
        found[one.host_id].append(one)
    return found


def _may_be_emptied(
    host: Host, running: Sequence[Running], snapshot: FleetSnapshot, most_requests: int
) -> bool:
    """Whether everything on it is known, may move, and is little."""
    known = {one.instance_id for one in running if one.is_movable}
    return (
        host.state is HostState.READY
        and all(gpu.instance_id is None or gpu.instance_id in known for gpu in host.gpus)
        and not any(start.host_id == host.host_id for start in snapshot.starts)
        and sum(one.requests for one in running) <= most_requests
    )


def _empty(
    host: Host, snapshot: FleetSnapshot, running: Mapping[HostId, Sequence[Running]]
) -> Consolidation | None:
    leaving = _who_stays_for_long(running[host.host_id], snapshot)
    if not leaving:
        return None
    receivers = [
        one
        for one in snapshot.hosts
        if one.state is HostState.READY and _fullness(one, running) > _fullness(host, running)
    ]
    free = {one.host_id: len(one.free_gpus()) for one in receivers}
    moves: list[ConsolidationMove] = []
    # Large ones first: what is left of the room takes the small ones.
    for one in sorted(leaving, key=lambda each: (-len(each.gpu_indices), each.instance_id)):
        to_host = _tightest(one, receivers, free)
        if to_host is None:
            return None
        free[to_host] -= len(one.gpu_indices)
        moves.append(ConsolidationMove(one.instance_id, to_host))
    return Consolidation(host.host_id, sum(one.requests for one in running[host.host_id]), tuple(moves))


def _fullness(host: Host, running: Mapping[HostId, Sequence[Running]]) -> tuple[int, int, str]:
    """Taken GPUs, then requests; the id makes any two hosts differ. An empty host receives nothing."""
    taken = len(host.gpus) - len(host.free_gpus())
    return taken, sum(one.requests for one in running[host.host_id]), host.host_id


def _who_stays_for_long(running: Sequence[Running], snapshot: FleetSnapshot) -> list[Running]:
    """Those that are busy, or idle and needed by their model's minimum."""
    spare: dict[str, int] = defaultdict(int)
    for one in snapshot.running:
        spare[one.model.name] += 1
    for model in {each.model.name: each.model for each in snapshot.running}.values():
        spare[model.name] -= model.min_instances
    staying = []
    for each in running:
        if each.idle_s is not None and spare[each.model.name] > 0:
            spare[each.model.name] -= 1
        else:
            staying.append(each)
    return staying


def _tightest(one: Running, receivers: Sequence[Host], free: Mapping[HostId, int]) -> HostId | None:
    """Where the fewest GPUs stay free, its checkpoint in memory before on disk."""
    able = [
        host
        for host in receivers
        if free[host.host_id] >= len(one.gpu_indices) and host.tiers.get(one.model.checkpoint_id) in NEAR
    ]
    best = min(
        able,
        key=lambda host: (
            free[host.host_id],
            host.tiers[one.model.checkpoint_id] is not Tier.DRAM,
            host.host_id,
        ),
        default=None,
    )
    return best.host_id if best is not None else None

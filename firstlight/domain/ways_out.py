"""How an instance can give up its GPUs: end, or go on elsewhere, and what either costs whom.

`seconds` is when its GPUs are free. `price_s` is what others lose by it, in seconds of start-up time:
- an idle instance that ends costs its model a start later, if it is asked for soon: the start's seconds from
  where its checkpoint lies, times the likelihood SOON_S / (SOON_S + expected idle time). Where no history
  tells, an instance is expected to stay idle for as long as it has been;
- a moved request pauses once: MOVE_PRICE_S each, so that nobody is moved for a gain that nobody would notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from firstlight.domain.estimator import move_key
from firstlight.domain.fleet import FleetSnapshot, Host, Model, Running, StartRequest, Tier
from firstlight.domain.migration import PRIOR_MOVE
from firstlight.domain.names import CheckpointId, HostId, ModelName
from firstlight.domain.obstacles import obstacle
from firstlight.domain.start_costs import StartCosts
from firstlight.domain.tenants import Tenants

SOON_S = 60.0
MOVE_PRICE_S = 0.05


class WayOut(NamedTuple):
    """One way for one instance. `to` is None when it ends where it is."""

    seconds: float
    price_s: float
    evicted_bytes: int
    to: Host | None = None
    # Who ends at the destination to make room, or takes the requests there; in both cases no other victim of
    # the same plan may go to that host.
    evicted: Running | None = None
    reused: Running | None = None
    # Of the destination's free GPUs, how many there are and how many it takes; what its disk has to read.
    free_gpus: int = 0
    gpu_count: int = 0
    ssd_bytes: int = 0

    @property
    def is_exclusive(self) -> bool:
        return self.evicted is not None or self.reused is not None


class _Room(NamedTuple):
    """A host that could start a victim's model: without its requests, which differ by victim."""

    way: WayOut
    host: Host


class WaysOut:
    """Ways of every tenant of a snapshot, computed when asked for and then kept."""

    def __init__(self, request: StartRequest, snapshot: FleetSnapshot, tenants: Tenants) -> None:
        self._request = request
        self._snapshot = snapshot
        self._tenants = tenants
        self._hosts = {host.host_id: host for host in snapshot.hosts}
        self._free: list[tuple[Host, int]] | None = None
        self._costs: dict[ModelName, StartCosts] = {}
        self._rooms: dict[tuple[ModelName, int], list[_Room]] = {}

    def of(self, one: Running, *, at_most: int) -> list[WayOut]:
        """Those that could be part of the best plan in which `at_most` instances go, soonest first.

        A way is left out if `at_most` other destinations are as soon, as cheap and cost as few bytes: the
        other victims can take all but one of them.
        """
        ways: list[WayOut] = []
        if self._tenants.can_evict(one):
            ways.append(WayOut(self._snapshot.evict_s, self.eviction_price_s(one), one.model.size_bytes))
        if one.is_movable:
            ways += self._moves(one, at_most)
        return undominated(ways, at_most)

    def eviction_price_s(self, one: Running) -> float:
        expected_s = one.idle_s if one.expected_idle_for_s is None else one.expected_idle_for_s
        restart_s = self._costs_of(one.model).total_s(self._hosts[one.host_id])
        return restart_s * SOON_S / (SOON_S + max(0.0, expected_s or 0.0))

    def _moves(self, one: Running, at_most: int) -> Iterator[WayOut]:
        price_s = MOVE_PRICE_S * max(1, one.requests)
        for room in self._rooms_for(one.model, at_most):
            if room.host.host_id == one.host_id:
                continue
            move = self._snapshot.moves.get(move_key(one.model.name, room.host.host_class), PRIOR_MOVE)
            seconds = room.way.seconds + move.seconds(one.tokens)
            yield room.way._replace(seconds=seconds, price_s=room.way.price_s + price_s)

    def _rooms_for(self, model: Model, at_most: int) -> list[_Room]:
        key = (model.name, at_most)
        if key not in self._rooms:
            by_class: dict[str, list[WayOut]] = {}
            for way in self._all_rooms(model):
                assert way.to is not None
                by_class.setdefault(way.to.host_class, []).append(way)
            # Within a class a victim's own seconds are the same everywhere. One more, for the victim's own
            # host may be among them.
            self._rooms[key] = [
                _Room(way, way.to)
                for ways in by_class.values()
                for way in undominated(ways, at_most + 1)
                if way.to is not None
            ]
        return self._rooms[key]

    def _all_rooms(self, model: Model) -> Iterator[WayOut]:
        costs = self._costs_of(model)
        for host, free in self._near(model.checkpoint_id):
            seconds = costs.total_s(host)
            if free >= model.gpu_count:
                ssd_bytes = model.size_bytes if _is_on_ssd(model, host) else 0
                if obstacle(model, host) is None:
                    yield WayOut(seconds, 0.0, 0, host, None, None, free, model.gpu_count, ssd_bytes)
                continue
            if obstacle(model, host) is not None:
                continue
            for idle in self._tenants.evictable().get(host.host_id, ()):
                if idle.model.name != model.name and free + len(idle.gpu_indices) >= model.gpu_count:
                    yield WayOut(
                        seconds + self._snapshot.evict_s,
                        self.eviction_price_s(idle),
                        idle.model.size_bytes,
                        host,
                        idle,
                    )
        for idle in self._tenants.idle_of(model.name):
            host = self._hosts[idle.host_id]
            if self._may_go_to(host):
                yield WayOut(0.0, 0.0, 0, host, None, idle)

    def _near(self, checkpoint_id: CheckpointId) -> Iterator[tuple[Host, int]]:
        """Hosts that have the checkpoint and room, or could make it, with how many of their GPUs are free."""
        if self._free is None:
            idle = self._tenants.evictable()
            self._free = [
                (host, free)
                for host in self._snapshot.hosts
                if (free := sum(gpu.instance_id is None for gpu in host.gpus)) or host.host_id in idle
                if self._may_go_to(host)
            ]
        for host, free in self._free:
            tier = host.tiers.get(checkpoint_id)
            if tier is Tier.DRAM or tier is Tier.SSD:
                yield host, free

    def _may_go_to(self, host: Host) -> bool:
        return obstacle(_NOTHING, host, self._request.excluded_hosts) is None

    def _costs_of(self, model: Model) -> StartCosts:
        if model.name not in self._costs:
            self._costs[model.name] = StartCosts(model, self._snapshot)
        return self._costs[model.name]


_NOTHING = Model(name=ModelName("-"), checkpoint_id=CheckpointId("-"), size_bytes=0, source_bytes=0)


def _is_on_ssd(model: Model, host: Host) -> bool:
    return host.tiers.get(model.checkpoint_id) is Tier.SSD


def undominated(ways: Iterable[WayOut], count: int) -> list[WayOut]:
    """Without those that `count` others, each at a place of its own, equal or better in every respect."""
    kept: list[WayOut] = []
    for way in sorted(ways, key=_order):
        rivals: set[HostId] = set()
        for other in kept:
            if other.price_s <= way.price_s and other.evicted_bytes <= way.evicted_bytes:
                if other.to is None:
                    break
                rivals.add(other.to.host_id)
                if len(rivals) >= count:
                    break
        else:
            kept.append(way)
    return kept


def _order(way: WayOut) -> tuple[float, float, int, str, str]:
    ending = way.evicted.instance_id if way.evicted is not None else ""
    return (way.seconds, way.price_s, way.evicted_bytes, way.to.host_id if way.to else "", ending)

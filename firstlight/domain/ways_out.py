"""How an instance can give up its GPUs: end, or go on elsewhere, and what either costs whom.

`seconds` is when its GPUs are free. `price_s` is what others lose by it, in seconds of start-up time:
- an idle instance that ends costs its model a start later, if it is asked for soon: the start's seconds from
  where its checkpoint lies, times the likelihood SOON_S / (SOON_S + expected idle time). Where no history
  tells, an instance is expected to stay idle for as long as it has been;
- a moved request pauses once: MOVE_PRICE_S each, so that nobody is moved for a gain that nobody would notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from firstlight.domain.destinations import Destinations
from firstlight.domain.estimator import move_key
from firstlight.domain.fleet import FleetSnapshot, Host, Model, Running, Tier
from firstlight.domain.fleet_index import index_of
from firstlight.domain.migration import PRIOR_MOVE, MoveModel
from firstlight.domain.names import HostId, InstanceId, ModelName
from firstlight.domain.start_costs import StartCosts
from firstlight.domain.tenants import Tenants

SOON_S = 60.0
MOVE_PRICE_S = 0.05
_NEVER = float("inf")


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


class WaysOut:
    """Ways of every tenant of a snapshot, computed when asked for and then kept."""

    def __init__(
        self, snapshot: FleetSnapshot, tenants: Tenants, excluded: frozenset[HostId], *, most_gone: int
    ) -> None:
        """A plan has at most `most_gone` victims; `excluded` are hosts that take nothing."""
        self._most_gone = most_gone
        self.evict_s = snapshot.evict_s
        self._snapshot = snapshot
        self._tenants = tenants
        self._hosts = index_of(snapshot).hosts
        self._destinations = Destinations(index_of(snapshot), tenants, excluded)
        self._costs: dict[ModelName, StartCosts] = {}
        self._prices_s: dict[InstanceId, float] = {}
        self._moves: dict[tuple[ModelName, str], MoveModel] = {}
        self._rooms: dict[ModelName, list[WayOut]] = {}
        self._least: dict[ModelName, list[tuple[float, MoveModel]]] = {}

    def ending(self, one: Running) -> WayOut | None:
        """None if it is busy, or needed by its model's minimum."""
        if not self._tenants.can_evict(one):
            return None
        return WayOut(self.evict_s, self._price_s(one), one.model.size_bytes)

    def moving(self, one: Running, *, latest_s: float, hidden_s: float, limit_s: float) -> list[WayOut]:
        """One for each room at another host: those within `latest_s` that cost at most `limit_s`.

        `hidden_s` of a way's seconds cost nothing.
        """
        name, own_price_s = one.model.name, moving_price_s(one)
        move_s = {known: self._move(name, known).seconds(one.tokens) for known in self._destinations.classes}
        latest_s = min(latest_s, limit_s - own_price_s + hidden_s)
        ways = []
        for room in self._rooms_for(one.model):
            to = room.to
            assert to is not None, "a room is somewhere"
            seconds, price_s = room.seconds + move_s[to.host_class], room.price_s + own_price_s
            late_s = seconds - hidden_s if seconds > hidden_s else 0.0
            if seconds <= latest_s and late_s + price_s <= limit_s and to.host_id != one.host_id:
                ways.append(WayOut(seconds, price_s, *room[2:]))
        return ways

    def least_moving(self, one: Running) -> tuple[float, float]:
        """Seconds and price of moving its requests that no destination can undercut."""
        name, tokens = one.model.name, one.tokens
        if name not in self._least:
            self._least[name] = self._least_of(one.model)
        return min(start_s + move.seconds(tokens) for start_s, move in self._least[name]), moving_price_s(one)

    def _least_of(self, model: Model) -> list[tuple[float, MoveModel]]:
        """By class of host, what a start takes at least, and how requests move there."""
        room_s = 0.0 if self._destinations.has_room(model.gpu_count) else self.evict_s
        costs = self._costs_of(model)
        # Where an idle instance takes the requests nothing has to be started.
        has_idle = bool(self._tenants.idle_of(model.name))
        return [
            (0.0 if has_idle else costs.least_s(known) + room_s, self._move(model.name, known))
            for known in self._destinations.classes
        ]

    def _move(self, model: ModelName, host_class: str) -> MoveModel:
        key = (model, host_class)
        found = self._moves.get(key)
        if found is None:
            found = self._moves[key] = self._snapshot.moves.get(move_key(model, host_class), PRIOR_MOVE)
        return found

    def _price_s(self, one: Running) -> float:
        """What ending an idle instance costs its model."""
        price_s = self._prices_s.get(one.instance_id)
        if price_s is None:
            expected_s = one.idle_s if one.expected_idle_for_s is None else one.expected_idle_for_s
            restart_s = self._costs_of(one.model).total_s(self._hosts[one.host_id])
            price_s = restart_s * SOON_S / (SOON_S + max(0.0, expected_s or 0.0))
            self._prices_s[one.instance_id] = price_s
        return price_s

    def _rooms_for(self, model: Model) -> list[WayOut]:
        if model.name not in self._rooms:
            self._rooms[model.name] = list(self._find_rooms(model))
        return self._rooms[model.name]

    def _find_rooms(self, model: Model) -> Iterator[WayOut]:
        """Where an instance of this model could go; without its requests, which differ by victim."""
        resting = self._resting(model)
        for idle, host in resting:
            yield WayOut(0.0, 0.0, 0, host, None, idle)
        # Nothing beats those. The other victims, and the one host that is their own, leave one of them.
        alike = Counter(host.host_class for _, host in resting)
        open_classes = frozenset(
            known for known in self._destinations.classes if alike[known] <= self._most_gone
        )
        if not open_classes:
            return
        costs = self._costs_of(model)
        for host, free, endable in self._destinations.near(model, open_classes):
            seconds = costs.total_s(host)
            if not endable:
                ssd_bytes = 0 if host.tiers[model.checkpoint_id] is Tier.DRAM else model.size_bytes
                yield WayOut(seconds, 0.0, 0, host, None, None, free, model.gpu_count, ssd_bytes)
            elif len(endable) == 1:
                yield self._in_place_of(endable[0], seconds, host)
            else:
                # At one place the cheapest do: whoever costs more bytes as well is never better.
                least_bytes = _NEVER
                for way in sorted((self._in_place_of(idle, seconds, host) for idle in endable), key=_cheap):
                    if way.evicted_bytes < least_bytes:
                        least_bytes = way.evicted_bytes
                        yield way

    def _in_place_of(self, idle: Running, seconds: float, host: Host) -> WayOut:
        return WayOut(seconds + self.evict_s, self._price_s(idle), idle.model.size_bytes, host, idle)

    def _resting(self, model: Model) -> list[tuple[Running, Host]]:
        """Idle instances of a model that could take requests: on alike hosts no more than can matter.

        A host takes one; a plan has at most `most_gone` victims, and one host is their own.
        """
        found: list[tuple[Running, Host]] = []
        taken: set[HostId] = set()
        alike: Counter[str] = Counter()
        for idle in self._tenants.idle_of(model.name):
            if idle.host_id in taken or not self._destinations.is_open(idle.host_id):
                continue
            host = self._hosts[idle.host_id]
            if alike[host.host_class] <= self._most_gone:
                alike[host.host_class] += 1
                taken.add(idle.host_id)
                found.append((idle, host))
        return found

    def _costs_of(self, model: Model) -> StartCosts:
        found = self._costs.get(model.name)
        if found is None:
            found = self._costs[model.name] = StartCosts(model, self._snapshot)
        return found


def moving_price_s(one: Running) -> float:
    """What others lose when an instance moves."""
    return MOVE_PRICE_S * max(1, one.requests)


def undominated(ways: Iterable[WayOut], count: int) -> list[WayOut]:
    """Ways that could be part of the best plan in which `count` instances go, soonest first.

    One is left out if `count` others, each at a place of its own, are as soon, as cheap and cost as few
    bytes: the other victims can take all but one of those places.
    """
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


def _cheap(way: WayOut) -> tuple[float, int, str]:
    assert way.evicted is not None
    return way.price_s, way.evicted_bytes, way.evicted.instance_id


def _order(way: WayOut) -> tuple[float, float, int, str, str]:
    ending = way.evicted.instance_id if way.evicted is not None else ""
    return (way.seconds, way.price_s, way.evicted_bytes, way.to.host_id if way.to else "", ending)

"""Which instances of one host had best give up their GPUs, and where each of them goes.

A depth-first search over the host's tenants, each of which stays or takes one of its ways out. A set costs
`max(0, latest GPU free - bytes on their way meanwhile) + sum of prices`; it has to free `needed` GPUs and may
free more. Victims that load from the same disk share it: each is taken to wait for the others' bytes too.
Branches that cannot beat the best plan known, whichever host that is on, are cut: what GPUs still to be freed
cost at least is part of the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firstlight.domain.fleet import PRIORS, Edge, Host, Running
from firstlight.domain.ways_out import WayOut, WaysOut, moving_price_s, undominated

# A tenth of a millisecond is far below what an estimate can know.
DIGITS = 4
# Costs this close round to the same.
_HAIR_S = 10**-DIGITS
_NEVER = float("inf")
# Branches of one decision. Fleets of four hosts have been seen to take 72.
BRANCHES_AT_MOST = 300


class Going(NamedTuple):
    """A victim, the way it takes, and when its GPUs are free: later than alone if it shares a destination."""

    one: Running
    way: WayOut
    seconds: float


class VictimSet(NamedTuple):
    goings: tuple[Going, ...]
    freeing_s: float
    # Seconds beyond those of a start on free GPUs, and what others lose.
    delay_s: float
    price_s: float
    evicted_bytes: int
    spare_gpus: int

    @property
    def cost_s(self) -> float:
        return self.delay_s + self.price_s


class _Bound(NamedTuple):
    """What a set has to beat: cost, then evicted bytes, then spare GPUs, all as on this host."""

    cost_s: float
    evicted_bytes: float
    spare_gpus: float


class VictimSearch:
    """`branches_left` is shared by all hosts of a decision; at nought the best so far stands."""

    def __init__(self, ways: WaysOut) -> None:
        self._ways = ways
        self.branches_left = BRANCHES_AT_MOST

    def cheapest(
        self,
        tenants: Sequence[Running],
        *,
        needed: int,
        hidden_s: float,
        latest_s: float = float("inf"),
        below_s: float = float("inf"),
    ) -> VictimSet | None:
        """The cheapest set that frees `needed` GPUs within `latest_s` at a cost of at most `below_s`.

        `hidden_s` of the freeing cost nothing: the start's bytes are on their way then.
        """
        branch = _Branch(self, needed, hidden_s, latest_s, below_s)
        leavings = sorted((_Leaving.of(one, self._ways) for one in tenants), key=_floor_order)
        if self._ways.evict_s <= latest_s:
            below_s = min(below_s, branch.cost_s(self._ways.evict_s, _least_price_s(leavings, needed)))
        limit_s = below_s + _HAIR_S
        if (floor_s := _floor_s(leavings, needed)) > limit_s or floor_s == _NEVER:
            return None
        options = [
            (leaving.one, ways)
            for leaving in leavings
            if (ways := self._promising(leaving, branch, leavings, limit_s))
        ]
        options.sort(key=lambda option: _rank(branch, option))
        branch.walk(options)
        return branch.best

    def _promising(
        self, leaving: _Leaving, branch: _Branch, leavings: Sequence[_Leaving], limit_s: float
    ) -> list[WayOut]:
        """The ways of one tenant that a set within the limit could have in it."""
        one, needed = leaving.one, branch.needed
        rest = needed - len(one.gpu_indices)
        if rest > 0:
            # The others' share.
            limit_s -= _floor_s(leavings, rest, without=one)
        ways = [
            way
            for way in (leaving.ending,)
            if way is not None
            if way.seconds <= branch.latest_s and branch.cost_s(way.seconds, way.price_s) <= limit_s
        ]
        if (
            one.is_movable
            and leaving.moving_price_s <= limit_s
            and branch.cost_s(*self._ways.least_moving(one)) <= limit_s
        ):
            ways += self._ways.moving(
                one, latest_s=branch.latest_s, hidden_s=branch.hidden_s, limit_s=limit_s
            )
        # Whatever another way dominates costs as much: those left out above dominate none of these.
        return undominated(ways, min(needed, len(leavings))) if len(ways) > 1 else ways


class _Leaving(NamedTuple):
    """A tenant, what its end costs if it may end, and its move if it may move; `floor_s` is per GPU."""

    one: Running
    ending: WayOut | None
    moving_price_s: float
    floor_s: float

    @classmethod
    def of(cls, one: Running, ways: WaysOut) -> _Leaving:
        ending = ways.ending(one)
        moving_s = moving_price_s(one) if one.is_movable else _NEVER
        ending_s = _NEVER if ending is None else ending.price_s
        return cls(one, ending, moving_s, min(moving_s, ending_s) / len(one.gpu_indices))


def _floor_order(leaving: _Leaving) -> tuple[float, str]:
    return leaving.floor_s, leaving.one.instance_id


def _floor_s(leavings: Sequence[_Leaving], needed: int, *, without: Running | None = None) -> float:
    """A price that no set undercuts: as if instances could leave GPU by GPU; `leavings` in `_floor_order`."""
    floor_s = 0.0
    for one, _, _, price_s in leavings:
        if one is without:
            continue
        gpus = len(one.gpu_indices)
        if gpus >= needed:
            return floor_s + price_s * needed
        floor_s += price_s * gpus
        needed -= gpus
    return _NEVER


def _least_price_s(leavings: Sequence[_Leaving], needed: int) -> float:
    """Of some set of idle instances whose end frees enough; infinite if there is none."""
    able = sorted(
        (ending.price_s / len(one.gpu_indices), one.instance_id, ending.price_s, len(one.gpu_indices))
        for one, ending, *_ in leavings
        if ending is not None
    )
    total_s = 0.0
    for _, _, price_s, gpus in able:
        total_s += price_s
        needed -= gpus
        if needed <= 0:
            return total_s
    return _NEVER


def _rank(branch: _Branch, option: tuple[Running, list[WayOut]]) -> tuple[float, str]:
    """Cheap ones first: the first set found then is a good one, and cuts most of the rest."""
    one, ways = option
    cheapest_s = min(branch.cost_s(way.seconds, way.price_s) for way in ways)
    return (cheapest_s / len(one.gpu_indices), one.instance_id)


class _Branch:
    """The search on one host."""

    def __init__(
        self, search: VictimSearch, needed: int, hidden_s: float, latest_s: float, below_s: float
    ) -> None:
        self._search = search
        self.needed = needed
        self.hidden_s = hidden_s
        self.latest_s = latest_s
        self._bound = _Bound(below_s, float("inf"), float("inf"))
        self._taken: dict[str, int] = {}
        self._disk_bytes: dict[str, int] = {}
        self._path: list[tuple[Running, WayOut]] = []
        self.best: VictimSet | None = None

    def cost_s(self, freeing_s: float, price_s: float) -> float:
        return max(0.0, freeing_s - self.hidden_s) + price_s

    def walk(self, options: Sequence[tuple[Running, list[WayOut]]]) -> None:
        # By position: GPUs that this one and all later ones hold, the least price of one of them, and when
        # the first of them could be free.
        held, price_s, seconds = [0], [float("inf")], [float("inf")]
        for one, ways in reversed(options):
            held.append(held[-1] + len(one.gpu_indices))
            price_s.append(min(price_s[-1], min(way.price_s for way in ways) / len(one.gpu_indices)))
            seconds.append(min(seconds[-1], ways[0].seconds))
        self._held, self._price_s, self._seconds = held[::-1], price_s[::-1], seconds[::-1]
        self._options = options
        self._step(0, self.needed, 0.0, 0.0, 0)

    def _step(self, at: int, needed: int, freeing_s: float, price_s: float, evicted_bytes: int) -> None:
        if needed <= 0:
            # Victims that share a disk are later than this, never sooner.
            least_s = round(self.cost_s(freeing_s, price_s), DIGITS)
            if (least_s, evicted_bytes, -needed) < self._bound:
                self._keep(needed, price_s, evicted_bytes)
            return
        if self._held[at] < needed:
            return
        least_s = self.cost_s(max(freeing_s, self._seconds[at]), price_s + needed * self._price_s[at])
        if (round(least_s, DIGITS), evicted_bytes, 0) >= self._bound:
            return
        one, ways = self._options[at]
        for way in ways:
            if self._search.branches_left <= 0:
                return
            self._search.branches_left -= 1
            if not self._enter(way):
                continue
            self._path.append((one, way))
            self._step(
                at + 1,
                needed - len(one.gpu_indices),
                max(freeing_s, way.seconds),
                price_s + way.price_s,
                evicted_bytes + way.evicted_bytes,
            )
            self._path.pop()
            self._leave(way)
        self._step(at + 1, needed, freeing_s, price_s, evicted_bytes)

    def _enter(self, way: WayOut) -> bool:
        """Take the way's room; False if others of this plan have it."""
        if way.to is None:
            return True
        host_id = way.to.host_id
        taken = self._taken.get(host_id, 0)
        if (taken and way.is_exclusive) or taken + way.gpu_count > way.free_gpus:
            return False
        self._taken[host_id] = _ALL if way.is_exclusive else taken + way.gpu_count
        self._disk_bytes[host_id] = self._disk_bytes.get(host_id, 0) + way.ssd_bytes
        return True

    def _leave(self, way: WayOut) -> None:
        if way.to is None:
            return
        host_id = way.to.host_id
        self._taken[host_id] = 0 if way.is_exclusive else self._taken[host_id] - way.gpu_count
        self._disk_bytes[host_id] -= way.ssd_bytes

    def _shared_s(self, way: WayOut) -> float:
        """When a victim's GPUs are free, given who else of this plan loads from the same disk."""
        if way.to is None or not way.ssd_bytes:
            return way.seconds
        others_bytes = self._disk_bytes[way.to.host_id] - way.ssd_bytes
        return way.seconds + (others_bytes / _disk_bandwidth(way.to) if others_bytes else 0.0)

    def _keep(self, needed: int, price_s: float, evicted_bytes: int) -> None:
        goings = tuple(Going(one, way, self._shared_s(way)) for one, way in self._path)
        freeing_s = max(going.seconds for going in goings)
        if freeing_s > self.latest_s:
            return
        found = _Bound(round(self.cost_s(freeing_s, price_s), DIGITS), evicted_bytes, -needed)
        if found >= self._bound:
            return
        self._bound = found
        self.best = VictimSet(
            goings=goings,
            freeing_s=freeing_s,
            delay_s=max(0.0, freeing_s - self.hidden_s),
            price_s=price_s,
            evicted_bytes=evicted_bytes,
            spare_gpus=-needed,
        )


_ALL = 1 << 30


def _disk_bandwidth(host: Host) -> float:
    return host.edges.get(Edge.SSD_TO_DRAM, PRIORS[Edge.SSD_TO_DRAM]).bandwidth_bytes_per_s

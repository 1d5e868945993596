"""Every plan that could begin now, host by host, and the best of them.

A plan costs the seconds until the model answers, and what it takes from others (`ways_out`). Hosts with free
GPUs are compared first; those whose GPUs are held follow in the order of what a start there takes at least,
until that alone is no better than the best plan known: no set of victims makes a start sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firstlight.domain.estimator import givers_of
from firstlight.domain.fleet import FleetSnapshot, Host, StartRequest
from firstlight.domain.fleet_index import Open, index_of
from firstlight.domain.names import HostId
from firstlight.domain.obstacles import obstacle
from firstlight.domain.start_costs import StartCosts
from firstlight.domain.tenants import Tenants
from firstlight.domain.victims import DIGITS, VictimSearch, VictimSet
from firstlight.domain.ways_out import WaysOut

_NEVER = float("inf")
# Hosts whose tenants are looked at. Those left out take at least as long, before any of theirs has gone.
HOSTS_AT_MOST = 16


class Plan(NamedTuple):
    """A start on `host`; `freed` says who goes first. `key` orders plans, the best first."""

    key: tuple[float, int, int, HostId]
    host: Host
    total_s: float
    freed: VictimSet | None = None


# A host that could take the start if more of its GPUs were free: seconds of that start, GPUs still missing,
# id, host. A plain tuple, for there are as many as hosts and they are sorted.
Crowded = tuple[float, int, HostId, Host]


class PlanSearch:
    """Looks at every host once, when made; `searched` are the hosts whose tenants were looked at since."""

    def __init__(self, request: StartRequest, snapshot: FleetSnapshot) -> None:
        self._request = request
        self._snapshot = snapshot
        self._victims: VictimSearch | None = None
        self._tenants: Tenants | None = None
        self.givers = givers_of(request.model, snapshot)
        self._costs = StartCosts(request.model, snapshot, self.givers)
        # Every host that may take a start of anything, with how many of its GPUs are free.
        self._ready: Sequence[Open] = _ready(request, snapshot)
        self.crowded: list[Crowded] = []
        self.can_free = request.may_free and bool(snapshot.running)
        self.searched: dict[HostId, VictimSet | None] = {}
        self._free: Plan | None = None
        self._look_at_hosts()

    def best(self, *, deadline_s: float | None) -> Plan | None:
        """The cheapest plan ready within `deadline_s`; None if there is none."""
        latest_s = _NEVER if deadline_s is None else deadline_s
        best = self._free if self._free is not None and self._free.total_s <= latest_s else None
        if not self.can_free:
            return best
        for crowded in self.crowded[:HOSTS_AT_MOST]:
            total_s = crowded[0]
            if total_s > latest_s or (best is not None and _cannot_beat(total_s, best)):
                break
            found = self._with_victims(crowded, latest_s=latest_s, best=best)
            if found is not None and (best is None or found.key < best.key):
                best = found
        return best

    def _look_at_hosts(self) -> None:
        model = self._request.model
        needed, cost_of = model.gpu_count, self._costs.total_s
        least_s, size_bytes = _NEVER, model.size_bytes
        for host, free in self._ready:
            if len(host.gpus) < needed:
                continue
            is_tight = 0 < host.dram_capacity_bytes < size_bytes or 0 < host.ssd_capacity_bytes < size_bytes
            if is_tight and obstacle(model, host) is not None:
                continue
            total_s = cost_of(host)
            if free < needed:
                self.crowded.append((total_s, needed - free, host.host_id, host))
            elif total_s <= least_s:
                key = (round(total_s, DIGITS), 0, free - needed, host.host_id)
                if self._free is None or key < self._free.key:
                    self._free = Plan(key, host, total_s)
                    # What rounds to the same is as good.
                    least_s = total_s + 10**-DIGITS
        self.crowded.sort()

    def _with_victims(self, crowded: Crowded, *, latest_s: float, best: Plan | None) -> Plan | None:
        total_s, needed_gpus, host_id, host = crowded
        tenants, victims = self._tools()
        hidden_s = self._costs.hidden_s(host, total_s)
        freed = victims.cheapest(
            tenants.at(host_id),
            needed=needed_gpus,
            hidden_s=hidden_s,
            latest_s=latest_s - total_s + hidden_s,
            below_s=_NEVER if best is None else best.key[0] - total_s + 10**-DIGITS,
        )
        self.searched[host_id] = freed
        if freed is None:
            return None
        key = (
            round(total_s + freed.cost_s, DIGITS),
            freed.evicted_bytes,
            freed.spare_gpus,
            host.host_id,
        )
        return Plan(key, host, total_s + freed.delay_s, freed)

    def _tools(self) -> tuple[Tenants, VictimSearch]:
        if self._tenants is None or self._victims is None:
            self._tenants = Tenants(index_of(self._snapshot), self._request.model)
            self._victims = VictimSearch(WaysOut(self._snapshot, self._tenants, self._request.excluded_hosts))
        return self._tenants, self._victims


def _ready(request: StartRequest, snapshot: FleetSnapshot) -> Sequence[Open]:
    known, excluded = index_of(snapshot).ready, request.excluded_hosts
    return [one for one in known if one.host.host_id not in excluded] if excluded else known


def _cannot_beat(total_s: float, best: Plan) -> bool:
    """Whether no victims at all would make a start that takes `total_s` better than `best`."""
    least_s = round(total_s, DIGITS)
    # Of equals the one that evicts nothing is better.
    return least_s > best.key[0] or (least_s == best.key[0] and best.freed is None)

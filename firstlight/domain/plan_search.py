"""Every plan that could begin now, host by host, and the best of them.

A plan costs the seconds until the model answers, and what it takes from others (`ways_out`). Hosts with free
GPUs are compared first; those whose GPUs are held follow in the order of what a start there takes at least,
until that alone is no better than the best plan known: no set of victims makes a start sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from firstlight.domain.estimator import givers_of
from firstlight.domain.fleet import FleetSnapshot, Host, StartRequest
from firstlight.domain.fleet_costs import FleetCosts, exceeds
from firstlight.domain.fleet_index import index_of
from firstlight.domain.host_columns import Flags, HostColumns, Integers
from firstlight.domain.names import HostId
from firstlight.domain.obstacles import obstacle
from firstlight.domain.start_costs import StartCosts
from firstlight.domain.tenants import Tenants
from firstlight.domain.victims import DIGITS, VictimSearch, VictimSet
from firstlight.domain.ways_out import WaysOut

_NEVER = float("inf")
# Hosts whose tenants are looked at. Those left out take at least as long, before any of theirs has gone.
HOSTS_AT_MOST = 8


class Plan(NamedTuple):
    """A start on `host`; `freed` says who goes first. `key` orders plans, the best first."""

    key: tuple[float, int, int, HostId]
    host: Host
    total_s: float
    freed: VictimSet | None = None


# A host that could take the start if more of its GPUs were free: seconds of that start, GPUs still missing,
# id, host.
Crowded = tuple[float, int, HostId, Host]


class PlanSearch:
    """Looks at every host once, when made; `searched` are the hosts whose tenants were looked at since."""

    def __init__(self, request: StartRequest, snapshot: FleetSnapshot) -> None:
        self._request = request
        self._snapshot = snapshot
        self._victims: VictimSearch | None = None
        self._tenants: Tenants | None = None
        self.givers = givers_of(request.model, snapshot)
        self._costs = StartCosts(request.model, snapshot)
        index = index_of(snapshot)
        self._columns = index.columns
        self._total_s = FleetCosts(request.model, snapshot, index, self.givers).total_s()
        able = _able(request, self._columns)
        has_free = self._columns.free_gpus >= request.model.gpu_count
        self._is_free = able & has_free
        self._is_crowded = able & ~has_free
        self._order: Integers | None = None
        self.can_free = request.may_free and bool(snapshot.running)
        self.searched: dict[HostId, VictimSet | None] = {}
        self._free = self._best_free()

    def crowded(self) -> Iterator[Crowded]:
        """Hosts that could take the start if more of their GPUs were free, the soonest first."""
        columns, needed = self._columns, self._request.model.gpu_count
        if self._order is None:
            rows = np.flatnonzero(self._is_crowded)
            keys = (columns.place[rows], -columns.free_gpus[rows], self._total_s[rows])
            self._order = rows[np.lexsort(keys)]
        for row in self._order:
            host = columns.hosts[row]
            yield float(self._total_s[row]), needed - int(columns.free_gpus[row]), host.host_id, host

    def best(self, *, deadline_s: float | None) -> Plan | None:
        """The cheapest plan ready within `deadline_s`; None if there is none."""
        latest_s = _NEVER if deadline_s is None else deadline_s
        best = self._free if self._free is not None and self._free.total_s <= latest_s else None
        if not self.can_free:
            return best
        for crowded in islice(self.crowded(), HOSTS_AT_MOST):
            total_s = crowded[0]
            if total_s > latest_s or (best is not None and _cannot_beat(total_s, best)):
                break
            found = self._with_victims(crowded, latest_s=latest_s, best=best)
            if found is not None and (best is None or found.key < best.key):
                best = found
        return best

    def _best_free(self) -> Plan | None:
        """The best start that frees nobody's GPUs."""
        rows = np.flatnonzero(self._is_free)
        if not len(rows):
            return None
        seconds = self._total_s[rows]
        # What rounds to the same is as good.
        rows = rows[seconds <= seconds.min() + 10**-DIGITS]
        columns, needed = self._columns, self._request.model.gpu_count
        plans = (
            Plan((round(total_s, DIGITS), 0, free - needed, host.host_id), host, total_s)
            for total_s, free, host in zip(
                self._total_s[rows].tolist(),
                columns.free_gpus[rows].tolist(),
                (columns.hosts[row] for row in rows),
                strict=True,
            )
        )
        return min(plans, key=attrgetter("key"))

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
            # Each of a plan's victims gives up at least one GPU.
            most_gone, excluded = self._request.model.gpu_count, self._request.excluded_hosts
            ways = WaysOut(self._snapshot, self._tenants, excluded, most_gone=most_gone)
            self._victims = VictimSearch(ways)
        return self._tenants, self._victims


def _able(request: StartRequest, columns: HostColumns) -> Flags:
    """Hosts that could take the start were all their GPUs free."""
    model, excluded = request.model, request.excluded_hosts
    able = columns.gpus >= model.gpu_count
    is_tight = exceeds(model.size_bytes, columns.dram_capacity_bytes)
    is_tight |= exceeds(model.size_bytes, columns.ssd_capacity_bytes)
    for row in np.flatnonzero(is_tight):
        able[row] &= obstacle(model, columns.hosts[row]) is None
    for host_id in excluded:
        if host_id in columns.rows:
            able[columns.rows[host_id]] = False
    return able


def _cannot_beat(total_s: float, best: Plan) -> bool:
    """Whether no victims at all would make a start that takes `total_s` better than `best`."""
    least_s = round(total_s, DIGITS)
    # Of equals the one that evicts nothing is better.
    return least_s > best.key[0] or (least_s == best.key[0] and best.freed is None)

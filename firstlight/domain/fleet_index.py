"""What every decision looks up in a snapshot, gathered once per snapshot.

A decision touches few of a thousand hosts and of their thousands of instances; which ones it finds here. The
lists are made when they are first asked for, and shared by all decisions on the snapshot: they are read only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from firstlight.domain.fleet import FleetSnapshot, Host, Running, Tier
from firstlight.domain.host_columns import HostColumns, Open
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, ModelName


class Holder(NamedTuple):
    """A host that has a checkpoint nearer than its source; `at` is its place in the snapshot."""

    at: int
    host: Host
    is_in_dram: bool


class FleetIndex:
    """`ready` are the hosts that take starts, `free_gpus` how many each of them has free."""

    __slots__ = (
        "_by_host",
        "_by_model",
        "_columns",
        "_holders",
        "_hosts",
        "_idle",
        "_returning",
        "_running",
        "_takers",
        "_tiers_of",
        "classes",
        "free_gpus",
        "hosts",
        "ready",
    )

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._hosts = snapshot.hosts
        self.hosts = {host.host_id: host for host in snapshot.hosts}
        self._running = snapshot.running
        self.ready = [Open(host, _free(host)) for host in snapshot.hosts if host.state is HostState.READY]
        self.free_gpus = {host.host_id: free for host, free in self.ready}
        self.classes = frozenset(host.host_class for host, _ in self.ready)
        self._takers: dict[CheckpointId, list[Open]] = {}
        self._tiers_of = [host.tiers.get for host in snapshot.hosts]
        self._by_host: dict[HostId, list[Running]] | None = None
        self._by_model: defaultdict[ModelName, list[Running]] | None = None
        self._idle: dict[ModelName, list[Running]] = {}
        self._holders: dict[CheckpointId, list[Holder]] = {}
        self._returning: frozenset[HostId] | None = None
        self._columns: HostColumns | None = None

    @property
    def columns(self) -> HostColumns:
        """A row for each of `ready`, in that order."""
        if self._columns is None:
            self._columns = HostColumns(self.ready)
        return self._columns

    def running_at(self, host_id: HostId) -> Sequence[Running]:
        if self._by_host is None:
            self._by_host = {}
            # Those of one host mostly stand together.
            for host, alike in groupby(self._running, attrgetter("host_id")):
                self._by_host.setdefault(host, []).extend(alike)
        return self._by_host.get(host_id, ())

    def running_of(self, model: ModelName) -> Sequence[Running]:
        if self._by_model is None:
            self._by_model = defaultdict(list)
            for one in self._running:
                self._by_model[one.model.name].append(one)
        return self._by_model.get(model, ())

    @property
    def returning(self) -> frozenset[HostId]:
        """Hosts some of whose GPUs are given up."""
        if self._returning is None:
            self._returning = frozenset(
                host.host_id for host, _ in self.ready if True in [gpu.is_given_up for gpu in host.gpus]
            )
        return self._returning

    def idle_of(self, model: ModelName) -> Sequence[Running]:
        """In the order of hosts' ids, then their own."""
        found = self._idle.get(model)
        if found is None:
            found = [one for one in self.running_of(model) if one.idle_s is not None]
            found.sort(key=_by_place)
            self._idle[model] = found
        return found

    def holders_of(self, checkpoint_id: CheckpointId) -> Sequence[Holder]:
        """In the snapshot's order, whatever their state."""
        found = self._holders.get(checkpoint_id)
        if found is None:
            hosts, remote, dram = self._hosts, Tier.REMOTE, Tier.DRAM
            found = self._holders[checkpoint_id] = [
                Holder(at, hosts[at], tier is dram)
                for at, tier_of in enumerate(self._tiers_of)
                if (tier := tier_of(checkpoint_id)) is not None
                if tier is not remote
            ]
        return found

    def takers_of(self, checkpoint_id: CheckpointId) -> Sequence[Open]:
        """Holders that take starts, DRAM before SSD."""
        found = self._takers.get(checkpoint_id)
        if found is None:
            able = [one for one in self.holders_of(checkpoint_id) if one.host.host_id in self.free_gpus]
            able.sort(key=lambda one: (not one.is_in_dram, one.at))
            found = [Open(host, self.free_gpus[host.host_id]) for _, host, _ in able]
            self._takers[checkpoint_id] = found
        return found


def index_of(snapshot: FleetSnapshot) -> FleetIndex:
    """The snapshot's own, made at the first call."""
    if not snapshot.kept:
        snapshot.kept.append(FleetIndex(snapshot))
    found = snapshot.kept[0]
    assert isinstance(found, FleetIndex)
    return found


def _free(host: Host) -> int:
    return [gpu.instance_id for gpu in host.gpus].count(None)


_by_place = attrgetter("host_id", "instance_id")

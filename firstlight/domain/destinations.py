"""Hosts that could take an instance which gives up its GPUs elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from firstlight.domain.fleet import Host, Model, Running
from firstlight.domain.fleet_index import FleetIndex
from firstlight.domain.host_columns import Open
from firstlight.domain.names import HostId
from firstlight.domain.obstacles import obstacle
from firstlight.domain.tenants import Tenants

# Destinations looked at for one model: more than a host has GPUs to be freed.
DESTINATIONS_AT_MOST = 10


class Destination(NamedTuple):
    """A host that has a model's checkpoint; `endable` are idle instances any one of which would make room."""

    host: Host
    free_gpus: int
    endable: Sequence[Running] = ()


class Destinations:
    """Hosts of a snapshot that may take instances."""

    def __init__(self, index: FleetIndex, tenants: Tenants, excluded: frozenset[HostId]) -> None:
        """`excluded` are hosts that take nothing for this decision."""
        self._index = index
        self._tenants = tenants
        self._excluded = excluded
        self.classes = index.classes
        self._most_free = max(index.free_gpus.values(), default=0)

    def is_open(self, host_id: HostId) -> bool:
        return host_id in self._index.free_gpus and host_id not in self._excluded

    def has_room(self, gpu_count: int) -> bool:
        """Whether some host may have so many GPUs free."""
        return self._most_free >= gpu_count

    def near(self, model: Model, classes: Collection[str]) -> list[Destination]:
        """Those of `classes` with the checkpoint in DRAM or on SSD, and room: free GPUs, or that would be.

        If there are more than DESTINATIONS_AT_MOST, free ones come first, then DRAM, then the order of hosts.
        """
        needed, holders = model.gpu_count, self._holders_of(model)
        if len(classes) < len(self.classes):
            holders = [one for one in holders if one.host.host_class in classes]
        found: list[Destination] = []
        for host, free in holders:
            if free < needed:
                continue
            if obstacle(model, host) is None:
                found.append(Destination(host, free))
            if len(found) == DESTINATIONS_AT_MOST:
                return found
        return found + self._with_room_made(model, holders, count=DESTINATIONS_AT_MOST - len(found))

    def _holders_of(self, model: Model) -> Sequence[Open]:
        known, excluded = self._index.takers_of(model.checkpoint_id), self._excluded
        return [one for one in known if one.host.host_id not in excluded] if excluded else known

    def _with_room_made(self, model: Model, holders: Sequence[Open], *, count: int) -> list[Destination]:
        needed = model.gpu_count
        found: list[Destination] = []
        for host, free in holders:
            if len(found) == count:
                break
            if free >= needed:
                continue
            endable = [
                one
                for one in self._tenants.evictable_at(host.host_id)
                if free + len(one.gpu_indices) >= needed and one.model.name != model.name
            ]
            if endable and obstacle(model, host) is None:
                found.append(Destination(host, free, endable))
        return found

"""Hosts that could take an instance which gives up its GPUs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firstlight.domain.fleet import Host, Model, Running, Tier
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
    """Hosts of a snapshot that may take instances; `ready` are those, each with its free GPUs."""

    def __init__(self, ready: Sequence[tuple[Host, int]], tenants: Tenants) -> None:
        self._ready = ready
        self._tenants = tenants
        self._ids: frozenset[HostId] | None = None
        self.classes = {host.host_class for host, _ in ready}
        self._open = [(index, host, free) for index, (host, free) in enumerate(ready) if free]
        self._most_free = max((free for _, _, free in self._open), default=0)

    def is_open(self, host_id: HostId) -> bool:
        if self._ids is None:
            self._ids = frozenset(host.host_id for host, _ in self._ready)
        return host_id in self._ids

    def has_room(self, gpu_count: int) -> bool:
        """Whether some host has so many GPUs free."""
        return self._most_free >= gpu_count

    def near(self, model: Model) -> list[Destination]:
        """Those with the checkpoint in DRAM or on SSD, and room: GPUs that are free, or that would be.

        If there are more than DESTINATIONS_AT_MOST, free ones come first, then DRAM, then the order of hosts.
        """
        checkpoint_id, needed = model.checkpoint_id, model.gpu_count
        roomy = [
            (tier is not Tier.DRAM, index, free)
            for index, host, free in self._open
            if free >= needed and (tier := host.tiers.get(checkpoint_id)) is not None
            if tier is not Tier.REMOTE
        ]
        roomy.sort()
        found: list[Destination] = []
        for _, index, free in roomy:
            host = self._ready[index][0]
            if obstacle(model, host) is None:
                found.append(Destination(host, free))
            if len(found) == DESTINATIONS_AT_MOST:
                return found
        return found + self._with_room_made(model, count=DESTINATIONS_AT_MOST - len(found))

    def _with_room_made(self, model: Model, *, count: int) -> list[Destination]:
        checkpoint_id, needed = model.checkpoint_id, model.gpu_count
        held = [
            (tier is not Tier.DRAM, index, free)
            for index, (host, free) in enumerate(self._ready)
            if free < needed and (tier := host.tiers.get(checkpoint_id)) is not None
            if tier is not Tier.REMOTE
        ]
        held.sort()
        found: list[Destination] = []
        for _, index, free in held:
            if len(found) == count:
                break
            host = self._ready[index][0]
            endable = [
                one
                for one in self._tenants.evictable_at(host.host_id)
                if free + len(one.gpu_indices) >= needed and one.model.name != model.name
            ]
            if endable and obstacle(model, host) is None:
                found.append(Destination(host, free, endable))
        return found

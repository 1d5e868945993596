"""Hosts that could take an instance which gives up its GPUs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firstlight.domain.fleet import Host, Model, Running, Tier
from firstlight.domain.names import HostId
from firstlight.domain.obstacles import obstacle
from firstlight.domain.tenants import Tenants

# Destinations looked at for one model. More than twice as many as one host has GPUs to be freed.
DESTINATIONS_AT_MOST = 20


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
        self._most_free = max((free for _, free in ready), default=0)

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
        in_dram, on_ssd, held = [], [], []
        for host, free in self._ready:
            tier = host.tiers.get(checkpoint_id)
            if tier is None or tier is Tier.REMOTE:
                continue
            if free < needed:
                held.append((host, free))
            elif tier is Tier.DRAM:
                in_dram.append(Destination(host, free))
            else:
                on_ssd.append(Destination(host, free))
        found = [one for one in in_dram + on_ssd if obstacle(model, one.host) is None]
        if len(found) < DESTINATIONS_AT_MOST:
            held.sort(key=lambda one: one[0].tiers[checkpoint_id] is not Tier.DRAM)
            found += self._with_room_made(model, held, count=DESTINATIONS_AT_MOST - len(found))
        return found[:DESTINATIONS_AT_MOST]

    def _with_room_made(
        self, model: Model, held: Sequence[tuple[Host, int]], *, count: int
    ) -> list[Destination]:
        found: list[Destination] = []
        for host, free in held:
            if len(found) == count:
                break
            endable = [
                one
                for one in self._tenants.evictable_at(host.host_id)
                if free + len(one.gpu_indices) >= model.gpu_count and one.model.name != model.name
            ]
            if endable and obstacle(model, host) is None:
                found.append(Destination(host, free, endable))
        return found

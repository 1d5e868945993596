"""Who holds GPUs that a start could have, and what that start may do to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from firstlight.domain.fleet import Model, Running
from firstlight.domain.names import HostId, InstanceId, ModelName


class Tenants:
    """Running instances that may be touched for a start of `model`, by host.

    Never touched are instances of a model of higher priority (nor of the same model: freeing a GPU of one's
    own gains nothing), and the last `min_instances` of a model: those idle for the shortest time stay.
    """

    __slots__ = ("_kept", "_running", "by_host", "idle_by_host", "idle_by_model")

    def __init__(self, running: Sequence[Running], model: Model) -> None:
        by_host: dict[HostId, list[Running]] = defaultdict(list)
        name, priority = model.name, model.priority
        guarded: set[ModelName] = set()
        for one in running:
            tenant = one.model
            if tenant.priority <= priority and tenant.name != name:
                by_host[one.host_id].append(one)
                if tenant.min_instances:
                    guarded.add(tenant.name)
        self.by_host: Mapping[HostId, list[Running]] = by_host
        self._running = running
        self._kept = _kept(running, guarded) if guarded else frozenset[InstanceId]()
        self.idle_by_model: dict[ModelName, list[Running]] | None = None
        self.idle_by_host: dict[HostId, list[Running]] | None = None

    def can_evict(self, one: Running) -> bool:
        return one.idle_s is not None and one.instance_id not in self._kept

    def idle_of(self, model: ModelName) -> Sequence[Running]:
        """Idle instances of a model, evictable or not."""
        if self.idle_by_model is None:
            self.idle_by_model = defaultdict(list)
            for one in self._running:
                if one.idle_s is not None:
                    self.idle_by_model[one.model.name].append(one)
        return self.idle_by_model.get(model, ())

    def evictable(self) -> Mapping[HostId, list[Running]]:
        """Instances that may be ended, by host."""
        if self.idle_by_host is None:
            self.idle_by_host = defaultdict(list)
            for host_id, tenants in self.by_host.items():
                for one in tenants:
                    if self.can_evict(one):
                        self.idle_by_host[host_id].append(one)
        return self.idle_by_host


def _kept(running: Sequence[Running], guarded: set[ModelName]) -> frozenset[InstanceId]:
    """Idle instances that their model's minimum keeps, the most lately used of each."""
    busy: dict[ModelName, int] = defaultdict(int)
    idle: dict[ModelName, list[tuple[float, InstanceId, int]]] = defaultdict(list)
    for one in running:
        name = one.model.name
        if name not in guarded:
            continue
        if one.idle_s is None:
            busy[name] += 1
        else:
            idle[name].append((one.idle_s, one.instance_id, one.model.min_instances))
    kept: set[InstanceId] = set()
    for name, rows in idle.items():
        rows.sort()
        kept.update(instance_id for _, instance_id, _ in rows[: max(0, rows[0][2] - busy[name])])
    return frozenset(kept)

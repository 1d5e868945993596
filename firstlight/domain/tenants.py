"""Who holds GPUs that a start could have, and what that start may do to them."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.domain.fleet import Model, Running
from firstlight.domain.fleet_index import FleetIndex
from firstlight.domain.names import HostId, InstanceId, ModelName


class Tenants:
    """Running instances, and which of them may be touched for a start of `model`.

    Never touched are instances of a model of higher priority (nor of the same model: freeing a GPU of one's
    own gains nothing), and the last `min_instances` of a model: those idle for the shortest time stay.
    """

    __slots__ = ("_index", "_kept", "_model")

    def __init__(self, index: FleetIndex, model: Model) -> None:
        self._index = index
        self._model = model
        self._kept: dict[ModelName, frozenset[InstanceId]] = {}

    def at(self, host_id: HostId) -> list[Running]:
        """Those on a host that may be touched."""
        name, priority = self._model.name, self._model.priority
        return [
            one
            for one in self._index.running_at(host_id)
            if one.model.priority <= priority and one.model.name != name
        ]

    def evictable_at(self, host_id: HostId) -> list[Running]:
        """Those on a host that may be ended."""
        return [one for one in self.at(host_id) if self.can_evict(one)]

    def can_evict(self, one: Running) -> bool:
        """Whether an instance that may be touched may be ended."""
        if one.idle_s is None:
            return False
        return not one.model.min_instances or one.instance_id not in self._kept_of(one.model)

    def idle_of(self, model: ModelName) -> Sequence[Running]:
        """Idle instances of a model, evictable or not."""
        return self._index.idle_of(model)

    def _kept_of(self, model: Model) -> frozenset[InstanceId]:
        """Idle instances that the model's minimum keeps: those most lately used."""
        if model.name not in self._kept:
            idle = sorted((one.idle_s or 0.0, one.instance_id) for one in self.idle_of(model.name))
            busy = len(self._index.running_of(model.name)) - len(idle)
            kept = idle[: max(0, model.min_instances - busy)]
            self._kept[model.name] = frozenset(instance_id for _, instance_id in kept)
        return self._kept[model.name]

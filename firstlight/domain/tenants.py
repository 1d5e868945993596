"""Who holds GPUs that a start could have, and what that start may do to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import TypeVar

from firstlight.domain.fleet import Model, Running
from firstlight.domain.names import HostId, InstanceId, ModelName

_Key = TypeVar("_Key", bound=Hashable)


class Tenants:
    """Running instances, and which of them may be touched for a start of `model`.

    Never touched are instances of a model of higher priority (nor of the same model: freeing a GPU of one's
    own gains nothing), and the last `min_instances` of a model: those idle for the shortest time stay.
    """

    __slots__ = ("_by_host", "_idle_by_model", "_kept", "_model", "_running")

    def __init__(self, running: Sequence[Running], model: Model) -> None:
        self._running = running
        self._model = model
        self._by_host: dict[HostId, list[Running]] = _grouped(running, "host_id")
        self._idle_by_model: dict[ModelName, list[Running]] | None = None
        self._kept: dict[ModelName, frozenset[InstanceId]] = {}

    def at(self, host_id: HostId) -> list[Running]:
        """Those on a host that may be touched."""
        name, priority = self._model.name, self._model.priority
        return [
            one
            for one in self._by_host.get(host_id, ())
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
        if self._idle_by_model is None:
            idle = [one for one in self._running if one.idle_s is not None]
            self._idle_by_model = _grouped(idle, "model.name")
        return self._idle_by_model.get(model, ())

    def _kept_of(self, model: Model) -> frozenset[InstanceId]:
        """Idle instances that the model's minimum keeps: those most lately used."""
        if model.name not in self._kept:
            idle = sorted((one.idle_s or 0.0, one.instance_id) for one in self.idle_of(model.name))
            busy = sum(one.model.name == model.name for one in self._running) - len(idle)
            kept = idle[: max(0, model.min_instances - busy)]
            self._kept[model.name] = frozenset(instance_id for _, instance_id in kept)
        return self._kept[model.name]


def _grouped(running: Sequence[Running], by: str) -> dict[_Key, list[Running]]:
    """Thousands of instances for every decision: in as few steps as can be."""
    found: dict[_Key, list[Running]] = defaultdict(list)
    for key, one in zip(map(attrgetter(by), running), running, strict=True):
        found[key].append(one)
    return found

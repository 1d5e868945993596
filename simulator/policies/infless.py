"""INFless: a pool that is kept warmer than needed, each function's size by its recent peak."""

from __future__ import annotations

from collections import deque
from math import ceil
from random import Random
from typing import ClassVar

from simulator.entities import Instance, InstanceState, ModelSpec, Request
from simulator.policies.clockwork import Clockwork


class Infless(Clockwork):
    """More instances than wait, by `over_provision`; idle ones stay for `keep_alive_s` (long).

    Its starts are placed like Clockwork's; what is beyond the recent peak is what gives way.
    """

    name: ClassVar[str] = "infless"
    option_names: ClassVar[frozenset[str]] = frozenset({"keep_alive_s", "over_provision", "window_s"})

    def __init__(self, *, random: Random, options: dict[str, float]) -> None:
        super().__init__(random=random, options=options)
        self._recent: dict[str, deque[float]] = {}

    def arrived(self, request: Request) -> None:
        self._recent.setdefault(request.model.name, deque()).append(request.arrival_s)

    def starts_wanted(self, model: ModelSpec) -> int:
        wanted = super().starts_wanted(model)
        if wanted <= 0:
            return wanted
        live = [
            one for one in self.cluster.by_model[model.name].values() if one.state is InstanceState.LOADING
        ]
        extra = ceil(self._peak(model) * (self.options.get("over_provision", 1.2) - 1.0))
        return max(wanted, wanted + extra - len(live))

    def keep_alive_s(self, instance: Instance) -> float | None:
        return self.options.get("keep_alive_s", 120.0)

    def _peak(self, model: ModelSpec) -> int:
        """Requests of the last window, as a bound on how many may run at once."""
        recent = self._recent.get(model.name, deque())
        horizon_s = self.cluster.now_s - self.options.get("window_s", 10.0)
        while recent and recent[0] < horizon_s:
            recent.popleft()
        return len(recent)

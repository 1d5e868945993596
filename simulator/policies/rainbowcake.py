"""RainbowCake: warmth in layers. The top one (a model on its GPUs) goes early, lower ones stay, shared."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from random import Random
from statistics import mean
from typing import ClassVar

from simulator.entities import Instance, Request
from simulator.policies.clockwork import Clockwork


class RainbowCake(Clockwork):
    """Keeps each instance for as long as its model's recent gaps make it likely to be used again.

    The lower layers are the started process (its loader adds nothing to a start) and weights in DRAM. Source
    of the idea: Yu et al., ASPLOS'24; its sharing-aware model is reduced to a time to live for the top layer.
    """

    name: ClassVar[str] = "rainbowcake"
    option_names: ClassVar[frozenset[str]] = frozenset({"keep_alive_s", "longest_s"})

    def __init__(self, *, random: Random, options: dict[str, float]) -> None:
        super().__init__(random=random, options=options)
        self._arrivals: dict[str, deque[float]] = {}

    def arrived(self, request: Request) -> None:
        self._arrivals.setdefault(request.model.name, deque(maxlen=9)).append(request.arrival_s)

    def keep_alive_s(self, instance: Instance) -> float | None:
        """Until three mean gaps have passed (95% of a Poisson process), within bounds."""
        times = list(self._arrivals.get(instance.model.name, ()))
        gaps = [later - earlier for earlier, later in pairwise(times)]
        default_s = self.options.get("keep_alive_s", 60.0)
        return min(self.options.get("longest_s", 600.0), max(1.0, 3.0 * mean(gaps))) if gaps else default_s

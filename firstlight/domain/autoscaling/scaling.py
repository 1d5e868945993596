"""How many instances a model should have, by the requests that run and wait, without swinging to and fro.

Pure: `decide` takes the figures of now and what it remembered, and returns what to do and what to remember.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from firstlight.domain.errors import InvalidSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One model's figures at `now_s`, on any clock that only goes forward."""

    now_s: float
    running: int
    waiting: int
    ready: int
    starting: int
    max_concurrency: int
    min_instances: int = 0
    max_instances: int = 1

    @property
    def requests(self) -> int:
        return self.running + self.waiting

    @property
    def instances(self) -> int:
        return self.ready + self.starting


@dataclass(frozen=True, slots=True)
class ScalingMemory:
    """Since when more, or fewer, instances would have been right, without a break; None: they are not."""

    short_since_s: float | None = None
    spare_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """`instances` that there should be, those that start included. `again_in_s`: when time alone decides."""

    instances: int
    memory: ScalingMemory
    reason: str
    again_in_s: float | None = None

    def change(self, demand: Demand) -> int:
        """Instances to start (positive) or to let go (negative)."""
        return self.instances - demand.instances


class ScalingPolicy(ABC):
    name: ClassVar[str]

    @abstractmethod
    def decide(self, demand: Demand, memory: ScalingMemory) -> Scaling: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyScaling(ScalingPolicy):
    """As many instances as keep the requests a place at or below `target`, after a while of needing them.

    Requests that wait count as those that run, so that a `target` above 1 lets a queue form before another
    instance is started for it. Nothing runs and somebody waits: one at once. More only when the shortage has
    lasted `out_after_s`, fewer when `target_in` would have been kept with fewer for `in_after_s`; `target_in`
    below `target` is what keeps one instance from being let go and started in turn.
    """

    name: ClassVar[str] = "concurrency"

    target: float = 1.0
    target_in: float = 0.6
    out_after_s: float = 0.0
    in_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.target_in <= self.target:
            raise InvalidSettings("scaling in must begin below where scaling out does, and above 0")
        if self.out_after_s < 0 or self.in_after_s < 0:
            raise InvalidSettings("a delay of scaling must not be negative")

    def decide(self, demand: Demand, memory: ScalingMemory) -> Scaling:
        have = demand.instances
        if have == 0 and demand.waiting:
            return Scaling(self._bounded(1, demand), ScalingMemory(), "the first instance")
        if (bounded := self._bounded(have, demand)) != have:
            return Scaling(bounded, ScalingMemory(), "the model's bounds")
        if (more := self._bounded(self._needed(demand, self.target), demand)) > have:
            return self._out(demand, memory, more)
        if (fewer := self._bounded(self._needed(demand, self.target_in), demand)) < have:
            return self._in(demand, memory, fewer)
        return Scaling(have, ScalingMemory(), "as many as needed")

    def _out(self, demand: Demand, memory: ScalingMemory, more: int) -> Scaling:
        since_s = demand.now_s if memory.short_since_s is None else memory.short_since_s
        remembered = ScalingMemory(short_since_s=since_s)
        left_s = self.out_after_s - (demand.now_s - since_s)
        if left_s > 0:
            return Scaling(demand.instances, remembered, "short, but not for long", left_s)
        return Scaling(more, remembered, f"{demand.requests} requests need {more} instances")

    def _in(self, demand: Demand, memory: ScalingMemory, fewer: int) -> Scaling:
        since_s = demand.now_s if memory.spare_since_s is None else memory.spare_since_s
        remembered = ScalingMemory(spare_since_s=since_s)
        left_s = self.in_after_s - (demand.now_s - since_s)
        if left_s > 0:
            return Scaling(demand.instances, remembered, "more than needed, but not for long", left_s)
        # One at a time, each after a while of its own: what is let go costs a start to bring back.
        return Scaling(
            max(fewer, demand.instances - 1),
            ScalingMemory(spare_since_s=demand.now_s),
            f"{demand.requests} requests need {fewer} instances",
        )

    def _needed(self, demand: Demand, target: float) -> int:
        # Rounded before it is rounded up: 3 requests at 0.6 of 5 places are one instance.
        return ceil(round(demand.requests / (demand.max_concurrency * target), 9))

    @staticmethod
    def _bounded(instances: int, demand: Demand) -> int:
        return min(demand.max_instances, max(demand.min_instances, instances))

"""How long an instance is kept though nobody asks, and when it is brought back before somebody does.

`FixedKeepAlive` is what most serverless platforms do. `HybridHistogram` lets each model's own gaps say.
Source of the idea: Shahrad et al., "Serverless in the Wild", USENIX ATC'20 (the hybrid histogram policy).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, sqrt
from statistics import median
from typing import ClassVar

from firstlight.domain.autoscaling.arrivals import ArrivalHistory
from firstlight.domain.autoscaling.warmth import Layer, LayerCost


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLife:
    """What a policy knows of one model."""

    history: ArrivalHistory
    # The model's own setting: what holds where nothing better is known.
    fixed_keep_alive_s: float
    # What a start of it would take once it has been let go.
    start_s: float
    # What each layer of warmth saves and takes; only `layered` needs it.
    costs: Mapping[Layer, LayerCost] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When an idle model holds its GPUs, in seconds since its last request ended.

    With `prewarm_s` 0: from then for `keep_alive_s`. Else it is let go at once, brought back at `prewarm_s`
    and kept for `keep_alive_s` from there. `basis` says in words where the figures come from.
    """

    prewarm_s: float
    keep_alive_s: float
    basis: str

    @property
    def ends_s(self) -> float:
        return self.prewarm_s + self.keep_alive_s

    @property
    def release_s(self) -> float:
        """How long an instance that has just become idle is kept."""
        return 0.0 if self.prewarm_s > 0 else self.keep_alive_s

    def is_held(self, idle_s: float) -> bool:
        return self.prewarm_s <= idle_s < self.ends_s


class KeepAlivePolicy(ABC):
    name: ClassVar[str]

    @abstractmethod
    def window(self, life: ModelLife) -> Window:
        """When this model should hold its GPUs while idle."""

    def times_to_live_s(self, life: ModelLife) -> Mapping[Layer, float]:
        """Idle seconds after which each layer of warmth may go; `inf`: only when its room is wanted."""
        window = self.window(life)
        return {Layer.SPARE: inf, Layer.ARCHITECTURE: inf, Layer.DRAM: inf, Layer.GPU: window.release_s}


@dataclass(frozen=True, slots=True)
class FixedKeepAlive(KeepAlivePolicy):
    """The same time always: the model's setting."""

    name: ClassVar[str] = "fixed"

    def window(self, life: ModelLife) -> Window:
        return Window(prewarm_s=0.0, keep_alive_s=life.fixed_keep_alive_s, basis="fixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridHistogram(KeepAlivePolicy):
    """Head and tail of a model's own gaps say when it is let go and when it is brought back.

    Too few gaps, or gaps spread over all bins alike, say nothing: the fixed time holds. Most gaps beyond the
    last bin: the next one is taken to be like the median of the last few, if those agree with one another.
    """

    name: ClassVar[str] = "hybrid-histogram"

    head: float = 0.05
    tail: float = 0.99
    # By which share the windows are widened: the head earlier, the tail later.
    margin: float = 0.10
    gaps_at_least: int = 12
    # Coefficient of variation of the bins' counts; 0 when all are alike, above 1 for a Poisson process.
    spread_at_least: float = 1.0
    beyond_at_most: float = 0.5
    # Nothing is let go only to be brought back, unless it is away for this many times what a start takes …
    prewarm_from_starts: float = 4.0
    # … and for at least so long.
    prewarm_from_s: float = 60.0
    longest_s: float = 3600.0

    def window(self, life: ModelLife) -> Window:
        history = life.history
        if history.seen < self.gaps_at_least and len(history.long_gaps_s) < 3:
            return self._fixed(life, f"fixed: {history.seen} gaps seen")
        if history.beyond > self.beyond_at_most * history.seen:
            return self._from_long_gaps(life)
        if history.seen < self.gaps_at_least or _spread(history.counts) < self.spread_at_least:
            return self._fixed(life, "fixed: the gaps have no pattern")
        return self._from_histogram(life)

    def _from_histogram(self, life: ModelLife) -> Window:
        head, tail = (life.history.percentile_bounds_s(share) for share in (self.head, self.tail))
        assert head is not None and tail is not None, "most gaps are within bounds"
        return self._between(
            life, begins_s=head[0] * (1 - self.margin), ends_s=tail[1] * (1 + self.margin), basis="histogram"
        )

    def _from_long_gaps(self, life: ModelLife) -> Window:
        gaps_s = life.history.long_gaps_s
        if len(gaps_s) < 3 or max(gaps_s) > 1.5 * min(gaps_s):
            return self._fixed(life, "fixed: the gaps are too long to count and differ")
        begins_s, ends_s = min(gaps_s) * (1 - self.margin), max(gaps_s) * (1 + self.margin)
        basis = f"the last long gaps, {median(gaps_s):.0f} s"
        return self._between(life, begins_s=begins_s, ends_s=ends_s, basis=basis)

    def _between(self, life: ModelLife, *, begins_s: float, ends_s: float, basis: str) -> Window:
        # Brought back so much earlier that it stands when it is wanted.
        prewarm_s = begins_s - life.start_s
        if prewarm_s < max(self.prewarm_from_s, self.prewarm_from_starts * life.start_s):
            prewarm_s = 0.0
        return Window(prewarm_s=prewarm_s, keep_alive_s=min(self.longest_s, ends_s - prewarm_s), basis=basis)

    def _fixed(self, life: ModelLife, basis: str) -> Window:
        return Window(prewarm_s=0.0, keep_alive_s=life.fixed_keep_alive_s, basis=basis)


def _spread(counts: tuple[int, ...]) -> float:
    """Coefficient of variation of the bins' counts."""
    mean = sum(counts) / len(counts)
    if not mean:
        return 0.0
    return sqrt(sum((count - mean) ** 2 for count in counts) / len(counts)) / mean

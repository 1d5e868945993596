"""Keep-alive by layers: what is cheap to hold and widely shared stays long, what is dear goes early.

In the spirit of RainbowCake (Yu et al., ASPLOS'24): each layer has a time to live of its own, from what it
saves, what it takes, and how often any of its sharers comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from firstlight.domain.autoscaling.keep_alive import KeepAlivePolicy, ModelLife, Window
from firstlight.domain.autoscaling.warmth import Layer, LayerCost, best_hold_s, break_even_s, poisson


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredKeepAlive(KeepAlivePolicy):
    name: ClassVar[str] = "layered"

    gaps_at_least: int = 12
    longest_s: float = 3600.0

    def window(self, life: ModelLife) -> Window:
        """Of the top layer; a model whose costs are not known keeps its fixed time."""
        if Layer.GPU not in life.costs:
            return Window(prewarm_s=0.0, keep_alive_s=life.fixed_keep_alive_s, basis="fixed: no costs known")
        keep_alive_s = self.times_to_live_s(life)[Layer.GPU]
        return Window(prewarm_s=0.0, keep_alive_s=keep_alive_s, basis="what each layer saves and takes")

    def times_to_live_s(self, life: ModelLife) -> Mapping[Layer, float]:
        """By layer; a lower one lives at least as long as those above, which are of no use without it."""
        times: dict[Layer, float] = {}
        floor_s = 0.0
        for layer in reversed(Layer):
            if layer in life.costs:
                floor_s = max(floor_s, self._hold_s(life, life.costs[layer]))
            elif layer is Layer.GPU:
                floor_s = life.fixed_keep_alive_s
            times[layer] = floor_s
        return {layer: times[layer] for layer in Layer}

    def _hold_s(self, life: ModelLife, cost: LayerCost) -> float:
        if cost.shared_rate_per_s is not None:
            return best_hold_s(cost, poisson(cost.shared_rate_per_s), longest_s=self.longest_s)
        if life.history.seen < self.gaps_at_least:
            return break_even_s(cost, longest_s=self.longest_s)
        return best_hold_s(cost, life.history.survival, longest_s=self.longest_s)

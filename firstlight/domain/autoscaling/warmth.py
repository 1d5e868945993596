"""The layers of warmth of a model, what each saves and takes, and how long each pays.

    spare process with its imports → architecture warmed → weights in DRAM → bound on a GPU

Each layer needs those below it to be of use, and the lower it is, the more models can share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import exp

from firstlight.domain.autoscaling.arrivals import EDGES_S
from firstlight.domain.errors import InvalidEstimate


class Layer(StrEnum):
    """Lowest and most widely shared first."""

    SPARE = "spare"
    ARCHITECTURE = "architecture"
    DRAM = "dram"
    GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """`saves_s`: how much sooner a start is ready for this layer beside those below it.

    `price`: what a second of holding it is worth, in seconds of a request's waiting. `shared_rate_per_s`:
    how often any of those that share the layer would use it; None: this model alone does.
    """

    saves_s: float
    price: float
    shared_rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.saves_s < 0 or self.price < 0 or (self.shared_rate_per_s or 0) < 0:
            raise InvalidEstimate("what a layer saves, costs and how often it is used must not be negative")


# P(no use within t seconds), for t in seconds.
Survival = Callable[[float], float]


def poisson(rate_per_s: float) -> Survival:
    """Of what many use independently: however each of them comes, together they come like this."""
    return lambda elapsed_s: exp(-rate_per_s * elapsed_s)


def break_even_s(cost: LayerCost, *, longest_s: float) -> float:
    """How long to hold what one knows nothing of: never more than twice what the best choice had cost.

    Source: the ski-rental argument; hold until holding has cost what bringing back would.
    """
    return longest_s if cost.price == 0 else min(longest_s, cost.saves_s / cost.price)


def best_hold_s(cost: LayerCost, survival: Survival, *, longest_s: float) -> float:
    """The time T with the least expected cost `price * E[min(gap, T)] + saves_s * P(gap > T)`.

    Looked for among 0, the edges of the arrival histogram's bins, and `longest_s`; the earliest of equals.
    """
    edges = [0.0, *(edge for edge in EDGES_S if edge < longest_s), longest_s]
    best_s, least = 0.0, cost.saves_s * survival(0.0)
    held, before_s, before = 0.0, 0.0, survival(0.0)
    for edge_s in edges[1:]:
        after = survival(edge_s)
        held += cost.price * (edge_s - before_s) * (before + after) / 2
        if (total := held + cost.saves_s * after) < least:
            best_s, least = edge_s, total
        before_s, before = edge_s, after
    return best_s

"""Whether a lane needs a start now: a pure function of its figures and of what the policy remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from firstlight.domain.autoscaling.scaling import Demand, ScalingMemory, ScalingPolicy

# An instance that failed a request is usually known to be dead within this time; a start planned sooner
# would find its GPUs still taken.
SUSPICION_S = 3.0


class Need(StrEnum):
    NOTHING = "nothing"
    FIRST = "first"  # nothing runs and nothing starts
    ANOTHER = "another"  # what runs and starts is too little for those who ask


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFigures:
    now_s: float
    waiting: int
    running: int = 0
    # Instances that take requests, and places of each.
    ready: int = 0
    max_concurrency: int = 1
    starting: int = 0
    # Starting, ready and draining ones: what counts against the maximum.
    live_instances: int = 0
    max_instances: int = 1
    # How long the longest suspected instance has been suspected, if any is.
    suspected_for_s: float | None = None


@dataclass(frozen=True, slots=True)
class LaneNeed:
    """`again_in_s`: when to look again though nothing has changed; None: only when something has."""

    need: Need
    memory: ScalingMemory = field(default_factory=ScalingMemory)
    again_in_s: float | None = None


def need_of(figures: LaneFigures, policy: ScalingPolicy, memory: ScalingMemory) -> LaneNeed:
    """The first instance at once; further ones, side by side, when the policy says so."""
    if figures.waiting == 0:
        return LaneNeed(Need.NOTHING)
    if figures.ready + figures.starting == 0:
        doubt_s = figures.suspected_for_s
        if doubt_s is not None and doubt_s < SUSPICION_S:
            return LaneNeed(Need.NOTHING, again_in_s=max(0.05, SUSPICION_S - doubt_s))
        return LaneNeed(Need.FIRST)
    scaling = policy.decide(_demand(figures), memory)
    is_short = scaling.instances > figures.ready + figures.starting
    return LaneNeed(Need.ANOTHER if is_short else Need.NOTHING, scaling.memory, scaling.again_in_s)


def _demand(figures: LaneFigures) -> Demand:
    unusable = figures.live_instances - figures.ready - figures.starting
    return Demand(
        now_s=figures.now_s,
        running=figures.running,
        waiting=figures.waiting,
        ready=figures.ready,
        starting=figures.starting,
        max_concurrency=figures.max_concurrency,
        # What drains or is doubted holds GPUs of the model's share, and serves nobody new.
        max_instances=max(figures.ready + figures.starting, figures.max_instances - max(0, unusable)),
    )

"""Whether a lane needs a start now: a pure function of its figures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# An instance that failed a request is usually known to be dead within this time; a start planned sooner
# would find its GPUs still taken.
SUSPICION_S = 3.0


class Need(StrEnum):
    NOTHING = "nothing"
    FIRST = "first"  # nothing runs and nothing starts
    ANOTHER = "another"  # what runs cannot take all who wait


@dataclass(frozen=True, slots=True)
class LaneFigures:
    waiting: int
    # Places of ready instances, and how many instances are starting.
    ready_capacity: int
    starting: int
    live_instances: int
    max_instances: int
    # How long the longest suspected instance has been suspected, if any is.
    suspected_for_s: float | None = None


def need_of(figures: LaneFigures) -> Need:
    """One start at a time; a further one only when the queue is longer than what runs can hold at once."""
    if figures.waiting == 0 or figures.starting > 0:
        return Need.NOTHING
    if figures.ready_capacity == 0:
        is_settling = figures.suspected_for_s is not None and figures.suspected_for_s < SUSPICION_S
        return Need.NOTHING if is_settling else Need.FIRST
    if figures.waiting > figures.ready_capacity and figures.live_instances < figures.max_instances:
        return Need.ANOTHER
    return Need.NOTHING

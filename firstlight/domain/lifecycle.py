"""The state machines of hosts, instances, models and placements: which steps exist, and nothing else.

The database repeats these tables as constraints and a trigger (migrations/), so that a bug cannot write
an impossible row; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from firstlight.domain.errors import IllegalTransition


class HostState(StrEnum):
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


class InstanceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class ModelState(StrEnum):
    ACTIVE = "active"
    DELETING = "deleting"


class PlacementState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    QUARANTINED = "quarantined"


HOST_STEPS: Mapping[HostState, frozenset[HostState]] = {
    HostState.READY: frozenset({HostState.DRAINING, HostState.LOST}),
    HostState.DRAINING: frozenset({HostState.READY, HostState.LOST}),
    HostState.LOST: frozenset({HostState.READY}),
}
INSTANCE_STEPS: Mapping[InstanceState, frozenset[InstanceState]] = {
    InstanceState.STARTING: frozenset({InstanceState.READY, InstanceState.FAILED, InstanceState.STOPPED}),
    # Starting again when its bytes stopped coming after its route had been published.
    InstanceState.READY: frozenset(
        {InstanceState.STARTING, InstanceState.DRAINING, InstanceState.STOPPED, InstanceState.FAILED}
    ),
    # Ready again when a migration that was to empty it came to nothing.
    InstanceState.DRAINING: frozenset({InstanceState.READY, InstanceState.STOPPED, InstanceState.FAILED}),
    InstanceState.STOPPED: frozenset(),
    # Starting again, under a new epoch, when an operator has its failed start replayed.
    InstanceState.FAILED: frozenset({InstanceState.STARTING}),
}
MODEL_STEPS: Mapping[ModelState, frozenset[ModelState]] = {
    ModelState.ACTIVE: frozenset({ModelState.DELETING}),
    ModelState.DELETING: frozenset(),
}
PLACEMENT_STEPS: Mapping[PlacementState, frozenset[PlacementState]] = {
    PlacementState.LOADING: frozenset({PlacementState.READY, PlacementState.QUARANTINED}),
    PlacementState.READY: frozenset({PlacementState.LOADING, PlacementState.QUARANTINED}),
    PlacementState.QUARANTINED: frozenset({PlacementState.LOADING}),
}

State = TypeVar("State", HostState, InstanceState, ModelState, PlacementState)


def check_step(steps: Mapping[State, frozenset[State]], *, what: str, old: State, new: State) -> None:
    """Allow `old` → `new` if it is in the table or no step at all. Raises: IllegalTransition."""
    if old != new and new not in steps[old]:
        raise IllegalTransition(f"{what} cannot go from {old} to {new}", old=str(old), new=str(new))

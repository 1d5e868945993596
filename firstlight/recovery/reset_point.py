"""The last good point of a run: the workflow task to do again, with everything it had learned before."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.contracts import naming
from firstlight.domain.errors import Conflict
from firstlight.recovery.recorded import Recorded

# What these ask for when they give up. Asked again, the answer is the plan an operator has reserved.
GIVING_UP = {naming.COLD_START: "abandon_start", naming.LIVE_MIGRATION: "finish_migration"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPoint:
    """`event_id` ended the workflow task that is done again; `next_step` is what it asks for first."""

    event_id: int
    next_step: str


def point_where_it_gave_up(recorded: Recorded, workflow_type: str) -> ResetPoint:
    """Behind all it had done and learned, before it closed its books. Raises: Conflict."""
    name = GIVING_UP[workflow_type]
    asked = [step for step in recorded.steps if step.name == name]
    if not asked:
        raise Conflict(f"this run never came to {name}: replay it --from-start")
    return ResetPoint(event_id=asked[-1].asked_by, next_step=name)


def point_of_open_work(recorded: Recorded) -> ResetPoint:
    """Of a run that was cut off: before the earliest step that had not ended. Raises: Conflict."""
    unfinished = [step for step in recorded.steps if step.outcome == "open"]
    if unfinished:
        first = min(unfinished, key=lambda step: step.asked_by)
        return ResetPoint(event_id=first.asked_by, next_step=first.name)
    return _last_task(recorded)


def point_of_last_failure(recorded: Recorded) -> ResetPoint:
    """Before the step whose failure ended the run. Raises: Conflict."""
    failed = [step for step in recorded.steps if step.has_failed]
    if failed:
        last = max(failed, key=lambda step: step.ended_at_unix_s or 0.0)
        return ResetPoint(event_id=last.asked_by, next_step=last.name)
    return _last_task(recorded)


def _last_task(recorded: Recorded) -> ResetPoint:
    if recorded.last_task is None:
        raise Conflict("no worker ever took this run up: replay it --from-start")
    return ResetPoint(event_id=recorded.last_task, next_step="its last workflow task")

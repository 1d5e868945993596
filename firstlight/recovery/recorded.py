"""A workflow's recorded history, read as steps: what was asked for when, and what became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHistory
from temporalio.converter import DataConverter

from firstlight.domain.errors import InvalidInput
from firstlight.recovery.failure_chain import Link, chain_of

COMPLETED_TASK = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An activity, a child or a timer. `asked_by` is the event that ended the workflow task that asked."""

    event_id: int
    kind: str  # activity, child, timer
    name: str
    asked_by: int
    began_at_unix_s: float
    ended_at_unix_s: float | None = None
    outcome: str = "open"  # open, completed, failed, timed out, canceled
    attempt: int = 0
    worker: str = ""
    failure: tuple[Link, ...] = ()
    # What the last attempt had told when it failed or timed out; decoded JSON.
    heartbeat: Any = None

    @property
    def has_failed(self) -> bool:
        return self.outcome in ("failed", "timed out")


# What an event of the end of a step is called, by the field that holds it.
_ENDS = {
    "activity_task_completed_event_attributes": "completed",
    "activity_task_failed_event_attributes": "failed",
    "activity_task_timed_out_event_attributes": "timed out",
    "activity_task_canceled_event_attributes": "canceled",
    "child_workflow_execution_completed_event_attributes": "completed",
    "child_workflow_execution_failed_event_attributes": "failed",
    "child_workflow_execution_timed_out_event_attributes": "timed out",
    "child_workflow_execution_terminated_event_attributes": "failed",
    "child_workflow_execution_canceled_event_attributes": "canceled",
    "timer_fired_event_attributes": "completed",
    "timer_canceled_event_attributes": "canceled",
}


class Recorded:
    """One run's history. Any: payloads are JSON of whatever contract they belong to."""

    def __init__(self, history: WorkflowHistory, converter: DataConverter) -> None:
        self.history = history
        self._converter = converter
        self.steps: tuple[Step, ...] = ()
        self.signals: tuple[tuple[float, str], ...] = ()

    @staticmethod
    async def read(client: Client, workflow_id: str, run_id: str) -> Recorded:
        history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        made = Recorded(history, client.data_converter)
        made.steps = tuple([step async for step in made._steps()])
        made.signals = tuple(
            (_time(event), event.workflow_execution_signaled_event_attributes.signal_name)
            for event in history.events
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
        )
        return made

    @property
    def last_task(self) -> int | None:
        """The event that ended the last workflow task."""
        ended = [event.event_id for event in self.history.events if event.event_type == COMPLETED_TASK]
        return ended[-1] if ended else None

    def failure(self) -> tuple[Link, ...]:
        """What the run failed with, or was cut off by; empty for one that goes on or came to its end."""
        last = self.history.events[-1]
        if last.HasField("workflow_execution_failed_event_attributes"):
            return chain_of(last.workflow_execution_failed_event_attributes.failure)
        if last.HasField("workflow_execution_terminated_event_attributes"):
            ended = last.workflow_execution_terminated_event_attributes
            return (Link(what=f"terminated by {ended.identity}", code="", message=ended.reason),)
        if last.HasField("workflow_execution_timed_out_event_attributes"):
            return (Link(what="timed out", code="", message="its time ran out before its open steps ended"),)
        return ()

    async def input(self, kind: type) -> Any:
        """The run's one argument as `kind`. Raises: InvalidInput for an input that is none."""
        payloads = self.history.events[0].workflow_execution_started_event_attributes.input.payloads
        try:
            [value] = await self._converter.decode(list(payloads), [kind])
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInput(f"the recorded input is no {kind.__name__}: {error}") from error
        return value

    async def result(self, step: Step, kind: type) -> Any:
        """The receipt of an activity that completed, as `kind`; None for another."""
        for event in self.history.events:
            if event.HasField("activity_task_completed_event_attributes"):
                ended = event.activity_task_completed_event_attributes
                if ended.scheduled_event_id == step.event_id and ended.result.payloads:
                    return (await self._converter.decode(list(ended.result.payloads), [kind]))[0]
        return None

    async def _steps(self) -> AsyncIterator[Step]:
        open_steps: dict[int, Step] = {}
        for event in self.history.events:
            if (begun := _begun(event)) is not None:
                open_steps[event.event_id] = begun
            elif event.HasField("activity_task_started_event_attributes"):
                started = event.activity_task_started_event_attributes
                open_steps[started.scheduled_event_id] = replace(
                    open_steps[started.scheduled_event_id], attempt=started.attempt, worker=started.identity
                )
            else:
                await self._end(event, open_steps)
        for step in open_steps.values():
            yield step

    async def _end(self, event: HistoryEvent, steps: dict[int, Step]) -> None:
        field = event.WhichOneof("attributes") or ""
        if field not in _ENDS:
            return
        # Any: one of the messages named in _ENDS.
        ended: Any = getattr(event, field)
        if field.startswith("activity"):
            key = ended.scheduled_event_id
        elif field.startswith("child"):
            key = ended.initiated_event_id
        else:
            key = ended.started_event_id
        failure = getattr(ended, "failure", None)
        heartbeat = await self._told(failure) if failure is not None else None
        steps[key] = replace(
            steps[key],
            ended_at_unix_s=_time(event),
            outcome=_ENDS[field],
            failure=chain_of(failure) if failure is not None else (),
            heartbeat=heartbeat,
        )

    # Any: what the heartbeat held.
    async def _told(self, failure: Failure) -> Any:
        """The last heartbeat of the attempt that failed: see `contracts.failures.application_error`."""
        payloads = list(failure.timeout_failure_info.last_heartbeat_details.payloads)
        if failure.HasField("application_failure_info"):
            payloads = failure.application_failure_info.details.payloads[1:]
        found = await self._converter.decode(payloads) if payloads else []
        return found[0] if found else None


def _begun(event: HistoryEvent) -> Step | None:
    if event.HasField("activity_task_scheduled_event_attributes"):
        activity = event.activity_task_scheduled_event_attributes
        kind, name = "activity", activity.activity_type.name
        asked_by = activity.workflow_task_completed_event_id
    elif event.HasField("start_child_workflow_execution_initiated_event_attributes"):
        child = event.start_child_workflow_execution_initiated_event_attributes
        kind, name = "child", child.workflow_id
        asked_by = child.workflow_task_completed_event_id
    elif event.HasField("timer_started_event_attributes"):
        timer = event.timer_started_event_attributes
        kind, name = "timer", f"{timer.start_to_fire_timeout.ToTimedelta().total_seconds():g} s"
        asked_by = timer.workflow_task_completed_event_id
    else:
        return None
    return Step(
        event_id=event.event_id, kind=kind, name=name, asked_by=asked_by, began_at_unix_s=_time(event)
    )


def _time(event: HistoryEvent) -> float:
    return event.event_time.seconds + event.event_time.nanos / 1e9

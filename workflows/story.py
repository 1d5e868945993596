"""What a workflow tells of itself while it runs: phase and outcome to filter by, details to read."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeUpdate

from firstlight.contracts import naming


class Story:
    """Collects events and keeps the run's current details; times are the workflow's own."""

    def __init__(self) -> None:
        self._events: list[str] = []
        self._head = ""

    def enter(self, phase: str, *, host_id: str | None = None) -> None:
        """Set the phase (and the host) people filter by. No command is sent when nothing changes."""
        # Any: attributes of several types stand in one list.
        known = workflow.info().typed_search_attributes
        updates: list[SearchAttributeUpdate[Any]] = []
        if known.get(naming.PHASE) != phase:
            updates.append(naming.PHASE.value_set(phase))
        if host_id is not None and known.get(naming.HOST) != host_id:
            updates.append(naming.HOST.value_set(host_id))
        if updates:
            workflow.upsert_search_attributes(updates)

    def end(self, outcome: str, *, actual_s: float | None = None) -> None:
        updates: list[SearchAttributeUpdate[Any]] = [
            naming.PHASE.value_set("done"),
            naming.OUTCOME.value_set(outcome),
        ]
        if actual_s is not None:
            updates.append(naming.ACTUAL_MS.value_set(round(actual_s * 1000)))
        workflow.upsert_search_attributes(updates)

    def tell(self, event: str, *, head: str | None = None) -> None:
        """Add one line of what happened; `head` replaces the table above the lines."""
        if head is not None:
            self._head = head
        # Read by people: the newest hundred lines are enough of an instance that runs for weeks.
        self._events = [*self._events[-99:], f"- {workflow.now():%H:%M:%S} {event}"]
        workflow.set_current_details("\n".join([self._head, "", *self._events]).strip())

"""All there is to know of one run: its steps, why it failed, its last heartbeat, and what it left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from temporalio.client import Client

from firstlight.database.connection import Database
from firstlight.domain.errors import InvalidInput
from firstlight.recovery.failure_chain import Link, chain_of
from firstlight.recovery.found import FoundWorkflow, find
from firstlight.recovery.leftovers import Leftover, leftovers
from firstlight.recovery.recorded import Recorded, Step
from firstlight.recovery.subjects import Subjects, subjects_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An activity that is asked for and has not ended."""

    name: str
    state: str
    attempt: int
    last_heartbeat_at_unix_s: float | None
    # Any: what the activity told, decoded JSON.
    heartbeat: Any
    last_failure: tuple[Link, ...]
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    workflow: FoundWorkflow
    details: str
    steps: tuple[Step, ...]
    signals: tuple[tuple[float, str], ...]
    failure: tuple[Link, ...]
    pending: tuple[Pending, ...]
    # How often the present workflow task was tried: above 1, the code itself fails.
    task_attempt: int
    last_heartbeat: Any
    left_behind: tuple[Leftover, ...]
    not_looked_at: tuple[str, ...]


async def show(
    client: Client, database: Database | None, workflow_id: str, *, run_id: str | None = None
) -> Shown:
    """Raises: NotFound."""
    found = await find(client, workflow_id, run_id)
    recorded = await Recorded.read(client, found.workflow_id, found.run_id)
    try:
        subjects = await subjects_of(recorded, found.workflow_type)
        unread: tuple[str, ...] = ()
    except InvalidInput as error:
        subjects, unread = Subjects(), (error.message,)
    left, silent = await leftovers(client, database, subjects)
    described = await client.get_workflow_handle(found.workflow_id, run_id=found.run_id).describe()
    pending, task_attempt = await _pending(client, described.raw_description)
    return Shown(
        workflow=found,
        details=await described.static_summary() or "",
        steps=recorded.steps,
        signals=recorded.signals,
        failure=recorded.failure(),
        pending=pending,
        task_attempt=task_attempt,
        last_heartbeat=_last_heartbeat(pending, recorded.steps),
        left_behind=left,
        not_looked_at=(*unread, *silent),
    )


# Any: DescribeWorkflowExecutionResponse.
async def _pending(client: Client, raw: Any) -> tuple[tuple[Pending, ...], int]:
    found = []
    for row in raw.pending_activities:
        beats = await client.data_converter.decode(list(row.heartbeat_details.payloads))
        beat_at = row.last_heartbeat_time.seconds + row.last_heartbeat_time.nanos / 1e9
        found.append(
            Pending(
                name=row.activity_type.name,
                state={1: "scheduled", 2: "started", 3: "cancel requested"}.get(row.state, "open"),
                attempt=row.attempt,
                last_heartbeat_at_unix_s=beat_at or None,
                heartbeat=beats[0] if beats else None,
                last_failure=chain_of(row.last_failure),
                worker=row.last_worker_identity,
            )
        )
    return tuple(found), raw.pending_workflow_task.attempt


# Any: see Pending and Step.
def _last_heartbeat(pending: tuple[Pending, ...], steps: tuple[Step, ...]) -> Any:
    for one in pending:
        if one.heartbeat is not None:
            return one.heartbeat
    told = [step for step in steps if step.heartbeat is not None]
    return told[-1].heartbeat if told else None

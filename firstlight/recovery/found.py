"""Workflows as an operator looks for them: by state, age, model, host and type."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from firstlight.contracts import naming
from firstlight.domain.errors import InvalidInput, NotFound

# A cancelled one was asked to end and has undone itself: that is no failure.
FAILED = 'ExecutionStatus IN ("Failed", "TimedOut", "Terminated")'
LOOKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWorkflow:
    """One run. Empty strings where a search attribute was never set."""

    workflow_id: str
    run_id: str
    workflow_type: str
    status: str  # running, completed, failed, canceled, terminated, continued_as_new, timed_out
    started_at_unix_s: float
    closed_at_unix_s: float | None
    model: str
    host: str
    phase: str
    outcome: str
    task_queue: str

    @property
    def is_running(self) -> bool:
        return self.status == "running"


def query_of(
    *,
    is_failed: bool = True,
    since_unix_s: float | None = None,
    model: str | None = None,
    host: str | None = None,
    workflow_type: str | None = None,
    more: str | None = None,
) -> str:
    """A visibility query. Raises: InvalidInput for a name that no query can hold."""
    parts = [FAILED] if is_failed else []
    if since_unix_s is not None:
        since = datetime.fromtimestamp(since_unix_s, UTC).isoformat(timespec="milliseconds")
        # A run counts by its end: one that began yesterday may have failed a minute ago.
        parts.append(f'{"CloseTime" if is_failed else "StartTime"} >= "{since}"')
    for name, value in (
        (naming.MODEL.name, model),
        (naming.HOST.name, host),
        ("WorkflowType", workflow_type),
    ):
        if value is not None:
            parts.append(f'{name} = "{_plain(value)}"')
    if more:
        parts.append(f"({more})")
    return " AND ".join(parts)


def _plain(value: str) -> str:
    if '"' in value or "\\" in value:
        raise InvalidInput(f"{value!r} cannot stand in a query")
    return value


async def search(client: Client, query: str, *, limit: int) -> list[FoundWorkflow]:
    """Newest first, as the cluster's visibility lists them. Raises: InvalidInput for a query it refuses."""
    try:
        return [_found(row) async for row in client.list_workflows(query, limit=limit)]
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            raise InvalidInput(f"Temporal refuses the query {query!r}: {error.message}") from error
        raise


async def search_latest(client: Client, query: str, *, limit: int) -> list[FoundWorkflow]:
    """As `search`, without runs that a later run of the same workflow has taken over from."""
    rows = await search(client, query, limit=limit)
    gate = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def is_latest(row: FoundWorkflow) -> bool:
        async with gate:
            try:
                return (await find(client, row.workflow_id)).run_id == row.run_id
            except NotFound:
                # Retention has just taken it.
                return False

    kept = await asyncio.gather(*(is_latest(row) for row in rows))
    return [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]


async def find(client: Client, workflow_id: str, run_id: str | None = None) -> FoundWorkflow:
    """The latest run, or the named one. Raises: NotFound."""
    try:
        return _found(await client.get_workflow_handle(workflow_id, run_id=run_id).describe())
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
            raise NotFound(
                f"there is no workflow {workflow_id!r}" + (f" with run {run_id!r}" if run_id else "")
            ) from error
        raise


async def statuses(client: Client, workflow_ids: Sequence[str]) -> dict[str, str]:
    """Of the latest runs of those of these workflows that there are."""

    async def one(workflow_id: str) -> str:
        try:
            return (await find(client, workflow_id)).status
        except NotFound:
            return ""

    found = await asyncio.gather(*(one(workflow_id) for workflow_id in workflow_ids))
    return {name: status for name, status in zip(workflow_ids, found, strict=True) if status}


def _found(row: WorkflowExecution) -> FoundWorkflow:
    attributes = row.typed_search_attributes
    return FoundWorkflow(
        workflow_id=row.id,
        run_id=row.run_id,
        workflow_type=row.workflow_type,
        status=(row.status or WorkflowExecutionStatus.RUNNING).name.lower(),
        started_at_unix_s=row.start_time.timestamp(),
        closed_at_unix_s=row.close_time.timestamp() if row.close_time else None,
        model=_text(attributes, naming.MODEL),
        host=_text(attributes, naming.HOST),
        phase=_text(attributes, naming.PHASE),
        outcome=_text(attributes, naming.OUTCOME),
        task_queue=row.task_queue,
    )


def _text(attributes: TypedSearchAttributes, key: SearchAttributeKey[str]) -> str:
    return attributes.get(key) or ""

"""Workflows as an operator looks for them: by state, age, model, host and type."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from firstlight.contracts import naming
from firstlight.domain.errors import InvalidInput, NotFound

# A cancelled one was asked to end and has undone itself: that is no failure.
FAILED = 'ExecutionStatus IN ("Failed", "TimedOut", "Terminated")'
LOOKS_AT_ONCE = 16
PAGE = 100
# Some seconds of asking.
LOOKS_AT_MOST = 5000


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """`rows` newest first. `gave_up_after`: older runs than the newest so many were not looked at."""

    rows: tuple[FoundWorkflow, ...]
    has_more: bool = False
    gave_up_after: int | None = None


async def search(client: Client, query: str, *, limit: int) -> Search:
    """As the cluster's visibility lists them. Raises: InvalidInput for a query it refuses."""
    with _refusing(query):
        rows = [_found(row) async for row in client.list_workflows(query, limit=limit + 1)]
    return Search(rows=tuple(rows[:limit]), has_more=len(rows) > limit)


async def search_latest(
    client: Client, query: str, *, limit: int, look_at_most: int = LOOKS_AT_MOST
) -> Search:
    """As `search`, without runs that a later run of the same workflow has taken over from.

    It goes on behind those until `limit` others are found, or `look_at_most` runs were looked at: what failed
    in the evening may lie below a hundred failures that were replayed to success.
    """
    listing = client.list_workflows(query)
    gate = asyncio.Semaphore(LOOKS_AT_ONCE)
    kept: list[FoundWorkflow] = []
    looked_at, is_end = 0, False
    while len(kept) <= limit and looked_at < look_at_most and not is_end:
        with _refusing(query):
            await listing.fetch_next_page(page_size=min(PAGE, look_at_most - looked_at))
        rows = [_found(row) for row in listing.current_page or ()]
        are_latest = await asyncio.gather(*(_is_latest(client, row, gate) for row in rows))
        kept += [row for row, is_latest in zip(rows, are_latest, strict=True) if is_latest]
        looked_at += len(rows)
        is_end = listing.next_page_token is None
    has_more = len(kept) > limit
    gave_up_after = None if is_end or has_more else looked_at
    return Search(rows=tuple(kept[:limit]), has_more=has_more, gave_up_after=gave_up_after)


@contextmanager
def _refusing(query: str) -> Iterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            raise InvalidInput(f"Temporal refuses the query {query!r}: {error.message}") from error
        raise


async def _is_latest(client: Client, row: FoundWorkflow, gate: asyncio.Semaphore) -> bool:
    async with gate:
        try:
            return (await find(client, row.workflow_id)).run_id == row.run_id
        except NotFound:
            # Retention has just taken it.
            return False


async def find(client: Client, workflow_id: str, run_id: str | None = None) -> FoundWorkflow:
    """The latest run, or the named one. Raises: NotFound; RPCError, where the namespace is not there."""
    try:
        return _found(await client.get_workflow_handle(workflow_id, run_id=run_id).describe())
    except RPCError as error:
        is_none = error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT)
        if is_none and not lacks_namespace(error):
            raise NotFound(
                f"there is no workflow {workflow_id!r}" + (f" with run {run_id!r}" if run_id else "")
            ) from error
        raise


def lacks_namespace(error: RPCError) -> bool:
    """Temporal tells a workflow that is not there from a namespace that is not by this detail alone."""
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)


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

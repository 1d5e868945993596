"""Starts: plan, replan, publish, abandon, record."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import AbandonInput, RecordStartInput, ReplanInput, ReplanReceipt
from firstlight.database.connection import Database
from firstlight.database.records import PlannedStart, StartRecord
from firstlight.domain.names import HostId


async def plan_start(
    database: Database,
    *,
    model: str,
    deadline_s: float | None,
    may_wait: bool,
    request_id: str,
    now_unix_s: float,
    excluded_hosts: frozenset[HostId] = frozenset(),
) -> PlannedStart:
    """Decide and make it real in one transaction: decision, instance and GPUs, or none of them.

    Raises: UnknownModel, ModelBeingDeleted, DatabaseUnavailable.
    """
    raise NotImplementedError


async def replan_start(database: Database, request: ReplanInput, *, now_unix_s: float) -> ReplanReceipt:
    """Move the start to another host under a new epoch, or mark it failed. Idempotent per failed plan."""
    raise NotImplementedError


async def publish_route(
    session: AsyncSession,
    *,
    instance_id: str,
    epoch: int,
    endpoint: str,
    manifest_digest: str,
    size_bytes: int,
) -> None:
    """starting → ready. Idempotent for the same epoch and endpoint.

    Raises: UnknownInstance; StaleEpoch if the plan was replaced or given up; ModelBeingDeleted;
    CheckpointMismatch.
    """
    raise NotImplementedError


async def abandon_start(session: AsyncSession, request: AbandonInput) -> None:
    """Release the GPUs and close the row, unless a newer plan owns it. Idempotent."""
    raise NotImplementedError


async def record_start(session: AsyncSession, request: RecordStartInput) -> None:
    """Keep predicted beside actual, and refit the host's edges and the model's attach time. Idempotent."""
    raise NotImplementedError


async def record_first_token(
    session: AsyncSession, *, instance_id: str, first_token_s: float, request_to_first_token_s: float
) -> None:
    """Add what the API saw of the first request a start served. Raises: UnknownInstance."""
    raise NotImplementedError


async def list_starts(
    session: AsyncSession, *, model: str | None = None, limit: int = 20
) -> list[StartRecord]:
    """The latest starts, newest first."""
    raise NotImplementedError

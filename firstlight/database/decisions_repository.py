"""Decisions of the scheduler, as they were kept: also those that started nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import PlannedEstimate
from firstlight.database.decision_json import candidates_from_json, estimate_from_json
from firstlight.database.tables import DecisionRow
from firstlight.domain.errors import NotFound
from firstlight.domain.scheduler import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """`kind` is place, migrate, wait or reject; the first two have host, instance, epoch and estimate."""

    decision_id: str
    request_id: str
    model: str
    kind: str
    reason: str
    host_id: str | None
    instance_id: str | None
    epoch: int | None
    gpu_indices: tuple[int, ...]
    estimate: PlannedEstimate | None
    candidates: tuple[Candidate, ...]
    deadline_s: float | None
    replaces: str | None
    decided_at_unix_s: float


async def get_decision(session: AsyncSession, decision_id: str) -> DecisionRecord:
    """Raises: NotFound."""
    row = await session.get(DecisionRow, decision_id)
    if row is None:
        raise NotFound(f"there is no decision {decision_id[:80]!r}")
    return _record(row)


async def list_decisions(
    session: AsyncSession, *, model: str | None = None, limit: int = 20
) -> list[DecisionRecord]:
    """The latest decisions, newest first."""
    query = select(DecisionRow).order_by(DecisionRow.decided_at.desc()).limit(limit)
    if model is not None:
        query = query.where(DecisionRow.model == model)
    return [_record(row) for row in await session.scalars(query)]


def _record(row: DecisionRow) -> DecisionRecord:
    return DecisionRecord(
        decision_id=row.decision_id,
        request_id=row.request_id,
        model=row.model,
        kind=row.kind,
        reason=row.reason,
        host_id=row.host_id,
        instance_id=row.instance_id,
        epoch=row.epoch,
        gpu_indices=tuple(row.gpu_indices),
        estimate=None if row.estimate is None else estimate_from_json(row.estimate),
        candidates=candidates_from_json(row.candidates),
        deadline_s=row.deadline_s,
        replaces=row.replaces,
        decided_at_unix_s=row.decided_at.timestamp(),
    )

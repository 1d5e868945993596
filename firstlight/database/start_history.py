"""The latest starts, predicted beside actual."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from firstlight.database.decision_json import candidates_from_json, estimate_from_json
from firstlight.database.records import ActualStart, StartRecord
from firstlight.database.tables import DecisionRow, InstanceRow, StartupObservationRow
from firstlight.domain.lifecycle import InstanceState


async def list_starts(
    session: AsyncSession, *, model: str | None = None, limit: int = 20, with_candidates: bool = True
) -> list[StartRecord]:
    """The latest starts, newest first; a start that was planned again appears with its last plan.

    A decision has a candidate for every host of the fleet: leave them out where nobody reads them.
    """
    query = (
        select(InstanceRow, DecisionRow, StartupObservationRow)
        .join(DecisionRow, DecisionRow.decision_id == InstanceRow.decision_id)
        .outerjoin(StartupObservationRow, StartupObservationRow.instance_id == InstanceRow.instance_id)
        .order_by(InstanceRow.created_at.desc(), InstanceRow.epoch.desc())
        .limit(limit)
    )
    if model is not None:
        query = query.where(InstanceRow.model == model)
    if not with_candidates:
        query = query.options(defer(DecisionRow.candidates), defer(DecisionRow.victims))
    return [_record(*rows, with_candidates) for rows in (await session.execute(query))]


def _record(
    instance: InstanceRow, decision: DecisionRow, seen: StartupObservationRow | None, with_candidates: bool
) -> StartRecord:
    return StartRecord(
        instance_id=instance.instance_id,
        decision_id=decision.decision_id,
        request_id=decision.request_id,
        model=instance.model,
        host_id=instance.host_id,
        epoch=instance.epoch,
        state=InstanceState(instance.state),
        tier=(seen.tier if seen else None) or str((decision.estimate or {})["tier"]),
        predicted=estimate_from_json(decision.estimate or {}),
        actual=_actual(seen),
        candidates=candidates_from_json(decision.candidates) if with_candidates else (),
        decided_at_unix_s=decision.decided_at.timestamp(),
        ready_at_unix_s=instance.ready_at.timestamp() if instance.ready_at else None,
        ended_at_unix_s=instance.ended_at.timestamp() if instance.ended_at else None,
        first_token_s=seen.first_token_s if seen else None,
        request_to_first_token_s=seen.request_to_first_token_s if seen else None,
        prefill_s=seen.prefill_s if seen else None,
        failure_code=instance.failure_code,
        failure=instance.failure,
    )


def _actual(seen: StartupObservationRow | None) -> ActualStart | None:
    if seen is None or seen.total_s is None:
        return None
    return ActualStart(
        queue_s=seen.queue_s or 0.0,
        download_s=seen.download_s or 0.0,
        load_s=seen.load_s or 0.0,
        attach_s=seen.attach_s or 0.0,
        control_s=seen.control_s or 0.0,
        total_s=seen.total_s,
        bytes_moved=seen.bytes_moved or 0,
        moving_at_unix_s=seen.moving_at_unix_s,
        plans_tried=seen.plans_tried or 1,
        free_s=seen.free_s or 0.0,
    )

"""The plan under which an instance starts now, read back from its rows."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import CheckpointRef, StartPlan
from firstlight.database.decision_json import estimate_from_json
from firstlight.database.giving_way import GPUS_AWAITED
from firstlight.database.plan_reading import planned_victim
from firstlight.database.tables import CheckpointRow, DecisionRow, InstanceRow, ModelRow
from firstlight.domain.lifecycle import InstanceState


async def current_plan(session: AsyncSession, instance_id: str) -> StartPlan | None:
    """None: it does not start (any more)."""
    found = await session.execute(
        select(DecisionRow, InstanceRow, ModelRow, CheckpointRow, GPUS_AWAITED)
        .join(InstanceRow, InstanceRow.decision_id == DecisionRow.decision_id)
        .join(ModelRow, ModelRow.model_id == InstanceRow.model_id)
        .join(CheckpointRow, CheckpointRow.checkpoint_id == InstanceRow.checkpoint_id)
        .where(InstanceRow.instance_id == instance_id, InstanceRow.state == InstanceState.STARTING)
    )
    rows = found.one_or_none()
    if rows is None:
        return None
    decision, instance, model, checkpoint, awaited = rows
    return StartPlan(
        decision_id=decision.decision_id,
        instance_id=instance.instance_id,
        epoch=instance.epoch,
        host_id=instance.host_id,
        gpu_indices=list(decision.gpu_indices),
        model=instance.model,
        checkpoint=CheckpointRef(
            checkpoint_id=checkpoint.checkpoint_id,
            source=model.source,
            dtype=model.dtype,
            size_bytes=checkpoint.size_bytes or model.size_bytes,
            manifest_digest=checkpoint.manifest_digest or "",
        ),
        estimate=estimate_from_json(decision.estimate or {}),
        max_concurrency=instance.max_concurrency,
        keep_alive_s=instance.keep_alive_s,
        decided_at_unix_s=decision.decided_at.timestamp(),
        context_length=model.context_length,
        victims=[planned_victim(document) for document in decision.victims],
        awaits_gpus=awaited > 0,
    )


async def replacement_of(session: AsyncSession, failed: StartPlan) -> StartPlan | None:
    """The plan that replaced this very one, if the instance still starts under it."""
    replaces = await session.scalar(
        select(DecisionRow.replaces)
        .join(InstanceRow, InstanceRow.decision_id == DecisionRow.decision_id)
        .where(InstanceRow.instance_id == failed.instance_id)
    )
    return await current_plan(session, failed.instance_id) if replaces == failed.decision_id else None

"""A plan that was made before, read back from its decision: what a repeated question is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import CheckpointRef, PlannedEstimate, PlannedVictim, StartPlan
from firstlight.database.decision_json import estimate_from_json
from firstlight.database.giving_way import still_promised
from firstlight.database.tables import CheckpointRow, DecisionRow, InstanceRow, ModelRow
from firstlight.domain.lifecycle import InstanceState


async def replacement_of(session: AsyncSession, failed: StartPlan) -> StartPlan | None:
    """The plan that replaced this very one, if the instance still starts under it."""
    found = await session.execute(
        select(DecisionRow, InstanceRow, ModelRow, CheckpointRow)
        .join(InstanceRow, InstanceRow.decision_id == DecisionRow.decision_id)
        .join(ModelRow, ModelRow.model_id == InstanceRow.model_id)
        .join(CheckpointRow, CheckpointRow.checkpoint_id == InstanceRow.checkpoint_id)
        .where(DecisionRow.replaces == failed.decision_id, InstanceRow.state == InstanceState.STARTING)
    )
    rows = found.one_or_none()
    if rows is None:
        return None
    decision, instance, model, checkpoint = rows
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
        awaits_gpus=await still_promised(session, instance.instance_id) > 0,
    )


# Any: documents that plan_writing has written of the very dataclasses they become here.
def planned_victim(document: Mapping[str, Any]) -> PlannedVictim:
    destination = document["destination"]
    known = {**document, "destination": _plan(destination) if destination is not None else None}
    return PlannedVictim(**known)


def _plan(document: Mapping[str, Any]) -> StartPlan:
    return StartPlan(
        **{
            **document,
            "checkpoint": CheckpointRef(**document["checkpoint"]),
            "estimate": PlannedEstimate(**document["estimate"]),
            "victims": [planned_victim(victim) for victim in document["victims"]],
        }
    )

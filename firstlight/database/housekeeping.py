"""What nobody waits for: models whose last instance has ended, checkpoints and decisions nobody needs."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.tables import CheckpointRow, DecisionRow, InstanceRow, ModelRow, PlacementRow
from firstlight.domain.lifecycle import ModelState

# Decisions that started nothing say little after a week, and a busy fleet makes many.
KEEP_REFUSALS = timedelta(days=7)
FORGOTTEN_AT_ONCE = 1000


async def finish_deletes(session: AsyncSession) -> list[str]:
    """Forget every model being deleted of which nothing runs any more; returns their names."""
    is_live = select(InstanceRow.instance_id).where(
        InstanceRow.model_id == ModelRow.model_id, InstanceRow.is_live
    )
    names = (
        await session.scalars(
            select(ModelRow.name)
            .where(ModelRow.state == ModelState.DELETING, ~is_live.exists())
            # One that is locked is being finished by somebody else.
            .with_for_update(skip_locked=True)
        )
    ).all()
    if names:
        await session.execute(delete(ModelRow).where(ModelRow.name.in_(names)))
        await forget_unused_checkpoints(session)
    return sorted(names)


async def forget_unused_checkpoints(session: AsyncSession) -> None:
    """Remove checkpoints that no model names and no host holds."""
    key = CheckpointRow.checkpoint_id
    await session.execute(
        delete(CheckpointRow).where(
            ~select(ModelRow.model_id).where(ModelRow.checkpoint_id == key).exists(),
            ~select(PlacementRow.host_id).where(PlacementRow.checkpoint_id == key).exists(),
        )
    )


async def forget_old_refusals(session: AsyncSession) -> None:
    """Remove old decisions that started nothing, a bounded number at a time."""
    old = (
        select(DecisionRow.decision_id)
        .where(DecisionRow.kind != "place", DecisionRow.decided_at < func.now() - KEEP_REFUSALS)
        .order_by(DecisionRow.decided_at)
        .limit(FORGOTTEN_AT_ONCE)
    )
    await session.execute(delete(DecisionRow).where(DecisionRow.decision_id.in_(old)))

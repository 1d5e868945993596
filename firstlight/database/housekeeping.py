"""What nobody waits for: models whose last instance has ended, checkpoints and decisions nobody needs."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.move_learning import forget_moves
from firstlight.database.tables import CheckpointRow, DecisionRow, InstanceRow, ModelRow, PlacementRow
from firstlight.domain.lifecycle import ModelState

# Decisions that started nothing say little after a week, and a busy fleet makes many.
KEEP_REFUSALS = timedelta(days=7)
# Nobody asks after so long why a start took what it took. What was learned of it is kept with its host.
KEEP_STARTS = timedelta(days=30)
FORGOTTEN_AT_ONCE = 1000


async def finish_deletes(session: AsyncSession) -> list[str]:
    """Forget every model being deleted of which nothing runs any more; returns their names.

    Waits for nobody, as its callers hold locks already: what is locked is left to the next time.
    """
    is_live = select(InstanceRow.instance_id).where(
        InstanceRow.model_id == ModelRow.model_id, InstanceRow.is_live
    )
    rows = await session.execute(
        select(ModelRow.model_id, ModelRow.name)
        .where(ModelRow.state == ModelState.DELETING, ~is_live.exists())
        .with_for_update(skip_locked=True)
    )
    names = {model_id: name for model_id, name in rows if await _lock_history(session, model_id)}
    if names:
        await session.execute(delete(ModelRow).where(ModelRow.model_id.in_(names)))
        await forget_moves(session, names.values())
        await forget_unused_checkpoints(session)
    return sorted(names.values())


async def _lock_history(session: AsyncSession, model_id: int) -> bool:
    """Lock the ended instances of a model, which forget it when it goes; False if somebody has one."""
    is_its = InstanceRow.model_id == model_id
    locked = await session.scalars(
        select(InstanceRow.instance_id).where(is_its).with_for_update(skip_locked=True)
    )
    return len(locked.all()) == await session.scalar(select(func.count()).where(is_its))


async def forget_unused_checkpoints(session: AsyncSession) -> None:
    """Remove checkpoints that no model names and no host holds; those in somebody's hands stay."""
    key = CheckpointRow.checkpoint_id
    is_unused = (
        ~select(ModelRow.model_id).where(ModelRow.checkpoint_id == key).exists(),
        ~select(PlacementRow.host_id).where(PlacementRow.checkpoint_id == key).exists(),
    )
    unused = (await session.scalars(select(key).where(*is_unused).with_for_update(skip_locked=True))).all()
    if unused:
        # Asked again now that they are ours: a model may have come to name one before we had it.
        await session.execute(delete(CheckpointRow).where(key.in_(unused), *is_unused))


async def forget_old_refusals(session: AsyncSession) -> None:
    """Remove old decisions that started nothing, a bounded number at a time."""
    old = (
        select(DecisionRow.decision_id)
        .where(DecisionRow.kind.in_(["wait", "reject"]), DecisionRow.decided_at < func.now() - KEEP_REFUSALS)
        .order_by(DecisionRow.decided_at)
        .limit(FORGOTTEN_AT_ONCE)
    )
    await session.execute(delete(DecisionRow).where(DecisionRow.decision_id.in_(old)))


async def forget_old_starts(session: AsyncSession) -> int:
    """Remove instances that ended long ago with their decisions and figures, a bounded number at a time.

    Returns how many; those in somebody's hands are left to the next time.
    """
    old = (
        await session.scalars(
            select(InstanceRow.instance_id)
            .where(
                ~InstanceRow.is_live,
                InstanceRow.ended_at < func.now() - KEEP_STARTS,
                # Says nothing new, except to the index that is sorted by it.
                InstanceRow.created_at < func.now() - KEEP_STARTS,
            )
            .order_by(InstanceRow.created_at)
            .limit(FORGOTTEN_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
    ).all()
    if old:
        await session.execute(delete(DecisionRow).where(DecisionRow.instance_id.in_(old)))
        await session.execute(delete(InstanceRow).where(InstanceRow.instance_id.in_(old)))
    return len(old)

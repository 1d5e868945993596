"""The end of an instance: its GPUs are released and its row is closed, in the caller's transaction."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnExpressionArgument

from firstlight.database.tables import InstanceRow, PromiseRow, ReservationRow
from firstlight.domain.errors import UnknownInstance
from firstlight.domain.lifecycle import INSTANCE_STEPS, InstanceState, check_step

# A failure's text is for reading; a traceback of megabytes is not.
LONGEST_FAILURE = 4000


async def lock_instance(session: AsyncSession, instance_id: str) -> InstanceRow:
    """The row as it is now, ours until the transaction ends. Raises: UnknownInstance."""
    row = (
        await session.execute(
            select(InstanceRow)
            .where(InstanceRow.instance_id == instance_id)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
    ).scalar_one_or_none()
    if row is None:
        raise UnknownInstance(f"there is no instance {instance_id!r}", instance_id=instance_id)
    return row


async def lock_instances(
    session: AsyncSession, *conditions: ColumnExpressionArgument[bool]
) -> list[InstanceRow]:
    """Rows that meet all conditions, ours until the transaction ends, locked in the order of their ids.

    One call a transaction, and before any model's row: whoever locks several instances, or instances and a
    model, does it in this order.
    """
    rows = await session.scalars(
        select(InstanceRow)
        .where(*conditions)
        .order_by(InstanceRow.instance_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return list(rows)


async def release_gpus(session: AsyncSession, instance_id: str) -> None:
    """Give up what the instance holds and what it was promised; its row is locked by the caller.

    A GPU that is promised to another start becomes that start's at once.
    """
    # In this order: a promise may become a reservation while we wait for it.
    await session.execute(delete(PromiseRow).where(PromiseRow.instance_id == instance_id))
    await session.execute(delete(ReservationRow).where(ReservationRow.instance_id == instance_id))


async def close_instance(
    session: AsyncSession,
    row: InstanceRow,
    *,
    outcome: InstanceState,
    reason: str,
    failure_code: str = "",
) -> None:
    """`row`, locked by the caller, becomes stopped or failed; nothing is done to one that has ended.

    Raises: IllegalTransition for an outcome that is no end.
    """
    if not row.is_live:
        return
    check_step(INSTANCE_STEPS, what=f"instance {row.instance_id}", old=InstanceState(row.state), new=outcome)
    # Before the state: a reservation of an instance that has ended cannot exist, not even for a moment.
    await release_gpus(session, row.instance_id)
    row.state = outcome
    row.ended_at = func.clock_timestamp()
    row.end_reason = reason[:LONGEST_FAILURE]
    if outcome is InstanceState.FAILED:
        row.failure_code = failure_code or "internal"
        row.failure = reason[:LONGEST_FAILURE]
    await session.flush()

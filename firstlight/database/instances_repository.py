"""Instances after their start: list, drain, close."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnExpressionArgument

from firstlight.contracts.instances import BeginDrainInput, BeginDrainReceipt, FinishInput
from firstlight.database.instance_closing import close_instance, lock_instance
from firstlight.database.records import InstanceRecord
from firstlight.database.tables import LIVE, InstanceRow, ModelRow, ReservationRow
from firstlight.domain.errors import StaleEpoch, UnknownInstance
from firstlight.domain.lifecycle import INSTANCE_STEPS, InstanceState, check_step

__all__ = [
    "InstanceRecord",
    "begin_drain",
    "finish_instance",
    "get_instance",
    "list_instances",
    "read_instances",
    "serve_again",
]


async def list_instances(
    session: AsyncSession, *, states: Collection[InstanceState] | None = None, model: str | None = None
) -> list[InstanceRecord]:
    """Instances in these states (None: all), newest first."""
    conditions: list[ColumnExpressionArgument[bool]] = []
    if states is not None:
        conditions.append(InstanceRow.state.in_([str(state) for state in states]))
        if LIVE.issuperset(states):
            # Says nothing new, except to the index that leaves out all that have ended.
            conditions.append(InstanceRow.is_live)
    if model is not None:
        conditions.append(InstanceRow.model == model)
    return await read_instances(session, conditions)


async def list_live_and_ended(
    session: AsyncSession, *, model: str | None = None, ended: int
) -> list[InstanceRecord]:
    """All that live and the latest `ended` that have ended, newest first. Those pile up for years."""
    of_model = [InstanceRow.model == model] if model is not None else []
    live = await read_instances(session, [InstanceRow.is_live, *of_model])
    past = await read_instances(session, [~InstanceRow.is_live, *of_model], at_most=ended) if ended else []
    return sorted([*live, *past], key=lambda one: (one.created_at_unix_s, one.epoch), reverse=True)


async def get_instance(session: AsyncSession, instance_id: str) -> InstanceRecord:
    """Raises: UnknownInstance."""
    found = await read_instances(session, [InstanceRow.instance_id == instance_id])
    if not found:
        raise UnknownInstance(f"there is no instance {instance_id!r}", instance_id=instance_id)
    return found[0]


async def read_instances(
    session: AsyncSession,
    conditions: Iterable[ColumnExpressionArgument[bool]],
    *,
    at_most: int | None = None,
) -> list[InstanceRecord]:
    """Records of the rows that meet all conditions, newest first; the first `at_most` of them."""
    held = (
        select(func.array_agg(aggregate_order_by(ReservationRow.gpu_index, ReservationRow.gpu_index)))
        .where(ReservationRow.instance_id == InstanceRow.instance_id)
        .scalar_subquery()
    )
    rows = await session.execute(
        select(InstanceRow, held)
        .where(*conditions)
        .order_by(InstanceRow.created_at.desc(), InstanceRow.epoch.desc())
        .limit(at_most)
        .execution_options(populate_existing=True)
    )
    return [_record(row, gpu_indices or []) for row, gpu_indices in rows]


async def begin_drain(session: AsyncSession, request: BeginDrainInput) -> BeginDrainReceipt:
    """ready → draining, unless its model's minimum needs it. Idempotent.

    Raises: UnknownInstance; StaleEpoch when a newer plan owns the instance.
    """
    row = await _owned(session, request.instance_id, request.epoch)
    if row.state != InstanceState.READY:
        return BeginDrainReceipt(draining=row.state == InstanceState.DRAINING, state=row.state)
    if request.respect_minimum and await _is_needed(session, row):
        return BeginDrainReceipt(draining=False, state=row.state)
    check_step(
        INSTANCE_STEPS,
        what=f"instance {row.instance_id}",
        old=InstanceState(row.state),
        new=InstanceState.DRAINING,
    )
    row.state = InstanceState.DRAINING
    row.end_reason = request.reason
    return BeginDrainReceipt(draining=True, state=row.state)


async def serve_again(session: AsyncSession, *, instance_id: str, epoch: int, reason: str) -> bool:
    """draining → ready for one that was drained for `reason` and is needed after all; False: it ends anyway.

    Raises: UnknownInstance.
    """
    row = await lock_instance(session, instance_id)
    if row.epoch != epoch or row.state != InstanceState.DRAINING or row.end_reason != reason:
        return False
    row.state, row.end_reason = InstanceState.READY, None
    return True


async def finish_instance(session: AsyncSession, request: FinishInput) -> None:
    """Release the GPUs and close the row. Idempotent.

    Raises: UnknownInstance; StaleEpoch when a newer plan owns the instance.
    """
    row = await _owned(session, request.instance_id, request.epoch)
    await close_instance(
        session,
        row,
        outcome=InstanceState(request.outcome),
        reason=request.reason,
        failure_code=request.failure_code,
    )


async def _owned(session: AsyncSession, instance_id: str, epoch: int) -> InstanceRow:
    row = await lock_instance(session, instance_id)
    if row.is_live and row.epoch > epoch:
        raise StaleEpoch(
            f"instance {instance_id} is under epoch {row.epoch} now; epoch {epoch} may not end it",
            instance_id=instance_id,
            epoch=epoch,
        )
    return row


async def _is_needed(session: AsyncSession, row: InstanceRow) -> bool:
    """Whether without this instance fewer would serve than the model's minimum."""
    # The lock makes two idle instances ask one after the other: both would see the other one staying.
    minimum = await session.scalar(
        select(ModelRow.min_instances)
        .where(ModelRow.model_id == row.model_id)
        .with_for_update(key_share=True)
    )
    ready = await session.scalar(
        select(func.count()).where(
            InstanceRow.model_id == row.model_id, InstanceRow.state == InstanceState.READY
        )
    )
    return (ready or 0) - 1 < (minimum or 0)


def _record(row: InstanceRow, gpu_indices: Iterable[int]) -> InstanceRecord:
    return InstanceRecord(
        instance_id=row.instance_id,
        model=row.model,
        host_id=row.host_id,
        state=InstanceState(row.state),
        epoch=row.epoch,
        endpoint=row.endpoint,
        checkpoint_id=row.checkpoint_id,
        max_concurrency=row.max_concurrency,
        keep_alive_s=row.keep_alive_s,
        created_at_unix_s=row.created_at.timestamp(),
        ready_at_unix_s=row.ready_at.timestamp() if row.ready_at else None,
        stopped_at_unix_s=row.ended_at.timestamp() if row.ended_at else None,
        end_reason=row.end_reason,
        failure_code=row.failure_code,
        failure=row.failure,
        gpu_indices=tuple(gpu_indices),
    )

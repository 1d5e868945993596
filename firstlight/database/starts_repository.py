"""Starts: plan, replan, publish, abandon, record. What is longer lives beside it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import AbandonInput, StartPlan
from firstlight.database.current_plan import current_plan
from firstlight.database.instance_closing import close_instance, lock_instance
from firstlight.database.locks import lock_placements
from firstlight.database.placements import record_checkpoint, unwritten_tiers, write_placement
from firstlight.database.start_history import list_starts
from firstlight.database.start_learning import record_first_token, record_start
from firstlight.database.start_planning import plan_start, replan_start
from firstlight.database.tables import InstanceRow, ModelRow
from firstlight.domain.errors import ModelBeingDeleted, StaleEpoch
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import INSTANCE_STEPS, InstanceState, ModelState, check_step

__all__ = [
    "abandon_start",
    "list_starts",
    "plan_start",
    "publish_route",
    "record_first_token",
    "record_start",
    "replan_start",
    "withdraw_route",
]


async def publish_route(
    session: AsyncSession,
    *,
    instance_id: str,
    epoch: int,
    endpoint: str,
    manifest_digest: str,
    size_bytes: int,
    tiers: Sequence[Tier] = (Tier.SSD, Tier.DRAM),
) -> None:
    """starting → ready: from the commit on, requests go to `endpoint`. Idempotent for the same epoch.

    Also records that the host has the checkpoint in `tiers`, and its digest and size when unset.
    Raises: UnknownInstance; StaleEpoch if the plan was replaced or given up; ModelBeingDeleted;
    CheckpointMismatch.
    """
    row = await lock_instance(session, instance_id)
    if row.epoch != epoch or not row.is_live:
        raise StaleEpoch(
            f"instance {instance_id} is {row.state} under epoch {row.epoch}; epoch {epoch} is too late",
            instance_id=instance_id,
            epoch=epoch,
        )
    if row.state != InstanceState.STARTING:
        return
    await _check_still_wanted(session, row)
    await record_checkpoint(
        session, checkpoint_id=row.checkpoint_id, manifest_digest=manifest_digest, size_bytes=size_bytes
    )
    # A client waits for this commit, and mostly the host's mirror has written them already.
    unwritten = await unwritten_tiers(
        session, host_id=row.host_id, checkpoint_id=row.checkpoint_id, tiers=tiers, size_bytes=size_bytes
    )
    if unwritten:
        await lock_placements(session, row.host_id)
    for tier in unwritten:
        await write_placement(
            session, host_id=row.host_id, checkpoint_id=row.checkpoint_id, tier=tier, size_bytes=size_bytes
        )
    check_step(
        INSTANCE_STEPS, what=f"instance {instance_id}", old=InstanceState(row.state), new=InstanceState.READY
    )
    row.state = InstanceState.READY
    row.endpoint = endpoint
    row.ready_at = func.clock_timestamp()


async def withdraw_route(session: AsyncSession, *, instance_id: str, epoch: int) -> bool:
    """ready → starting: the bytes of what was published have stopped coming, and its engine has ended.

    False if that plan does not serve (any more). Raises: UnknownInstance.
    """
    row = await lock_instance(session, instance_id)
    if row.epoch != epoch or row.state != InstanceState.READY:
        return False
    row.state, row.endpoint, row.ready_at = InstanceState.STARTING, None, None
    return True


async def abandon_start(session: AsyncSession, request: AbandonInput) -> StartPlan | None:
    """Release the GPUs and close the row, unless a newer plan owns it: that one is returned. Idempotent.

    Only the start's own workflow asks, so a newer plan that still starts is its to carry out: an operator
    has resumed it. Raises: UnknownInstance.
    """
    row = await lock_instance(session, request.plan.instance_id)
    if row.epoch > request.plan.epoch:
        return await current_plan(session, row.instance_id)
    await close_instance(
        session,
        row,
        outcome=InstanceState(request.outcome),
        reason=request.failure,
        failure_code=request.failure_code,
    )
    return None


async def _check_still_wanted(session: AsyncSession, row: InstanceRow) -> None:
    # Locked against the delete that would begin between this look and our commit.
    state = await session.scalar(
        select(ModelRow.state).where(ModelRow.model_id == row.model_id).with_for_update(read=True)
    )
    if state != ModelState.ACTIVE:
        raise ModelBeingDeleted(f"model {row.model!r} is being deleted", model=row.model)

"""A start that ended without an instance, planned anew: what a replay of its workflow needs reserved.

The same instance takes GPUs again under a new epoch, so whatever the old plan's engine or workflow still
does is fenced off. A rehearsal decides the same and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import StartPlan
from firstlight.database.connection import Database
from firstlight.database.fleet_view import FleetView, read_fleet
from firstlight.database.instance_closing import lock_instance, release_gpus
from firstlight.database.instance_limits import at_maximum
from firstlight.database.locks import lock_decision
from firstlight.database.plan_writing import Asked, GpuTaken, write_place
from firstlight.database.tables import DecisionRow, InstanceRow
from firstlight.domain.errors import Conflict, ModelBeingDeleted, NoCapacity, UnknownInstance
from firstlight.domain.fleet import StartRequest
from firstlight.domain.lifecycle import INSTANCE_STEPS, InstanceState, ModelState, check_step
from firstlight.domain.scheduler import Migrate, Place, decide

ATTEMPTS = 5


async def resume_start(
    database: Database, *, instance_id: str, reason: str, now_unix_s: float, is_rehearsal: bool = False
) -> StartPlan:
    """Give a failed start, or one that nobody carries out any more, a plan under a new epoch.

    The caller makes sure that no workflow carries it out. Raises: UnknownInstance; UnknownModel,
    ModelBeingDeleted; Conflict when it serves, was stopped on purpose, or its model was deployed anew;
    NoCapacity when nothing can take it now.
    """
    async with database.session() as session:
        row = await session.get(InstanceRow, instance_id)
    if row is None:
        raise UnknownInstance(
            f"there is no instance {instance_id!r} (any more): nothing is left to resume",
            instance_id=instance_id,
        )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            # A session that is not committed undoes everything, the reservations included.
            async with database.session() if is_rehearsal else database.transaction() as session:
                await lock_decision(session, row.model, is_last_attempt=attempt == ATTEMPTS)
                return await _resume(session, instance_id, reason=reason, now_unix_s=now_unix_s)
        except GpuTaken:
            continue
    raise AssertionError("the last attempt shuts out all other decisions")


async def _resume(session: AsyncSession, instance_id: str, *, reason: str, now_unix_s: float) -> StartPlan:
    row = await lock_instance(session, instance_id)
    _check_may_start(row)
    # Of a start that was never closed: what it holds must not stand in its own way.
    await release_gpus(session, instance_id)
    view = await read_fleet(session, model=row.model, now_unix_s=now_unix_s)
    _check_same_model(row, view)
    decision = _place(view, instance_id)
    await _reopen(session, row)
    replaced = await session.scalar(
        select(DecisionRow.decision_id).where(DecisionRow.replaces == row.decision_id)
    )
    asked = Asked(
        request_id=f"replay-{instance_id}",
        model=row.model,
        deadline_s=None,
        replaces=row.decision_id if replaced is None else None,
    )
    return await write_place(
        session, asked=asked, view=view, decision=decision, reason=reason, instance_id=instance_id
    )


def _check_may_start(row: InstanceRow) -> None:
    if row.state in (InstanceState.READY, InstanceState.DRAINING):
        raise Conflict(f"instance {row.instance_id} is {row.state} under epoch {row.epoch}: it has started")
    if row.state == InstanceState.STOPPED:
        raise Conflict(f"instance {row.instance_id} was stopped on purpose: {row.end_reason or 'no reason'}")


def _check_same_model(row: InstanceRow, view: FleetView) -> None:
    wanted = view.wanted
    if wanted.state is ModelState.DELETING:
        raise ModelBeingDeleted(f"model {row.model!r} is being deleted", model=row.model)
    if (row.model_id, row.checkpoint_id) != (wanted.model_id, wanted.model.checkpoint_id):
        raise Conflict(f"model {row.model!r} was deployed anew since; its next request starts it")


def _place(view: FleetView, instance_id: str) -> Place:
    """Raises: NoCapacity."""
    others = replace(view, starting=tuple(one for one in view.starting if one != instance_id))
    if (refused := at_maximum(others, may_wait=False)) is not None:
        raise NoCapacity(f"{view.wanted.model.name}: {refused.reason}", retry_after_s=5.0)
    decision = decide(StartRequest(view.wanted.model, None, may_wait=False, may_free=False), view.snapshot)
    assert not isinstance(decision, Migrate), "nothing may be freed for it"
    if not isinstance(decision, Place):
        raise NoCapacity(f"{view.wanted.model.name} has no place: {decision.reason}", retry_after_s=5.0)
    return decision


async def _reopen(session: AsyncSession, row: InstanceRow) -> None:
    """Write → starting; `write_place` adds host, epoch and GPUs before the transaction ends."""
    if row.state == InstanceState.STARTING:
        return
    check_step(
        INSTANCE_STEPS,
        what=f"instance {row.instance_id}",
        old=InstanceState(row.state),
        new=InstanceState.STARTING,
    )
    row.state, row.endpoint, row.ready_at, row.ended_at = InstanceState.STARTING, None, None, None
    row.end_reason = row.failure_code = row.failure = None
    await session.flush()

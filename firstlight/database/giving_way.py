"""Making a decision real that others give way to: their GPUs are promised, their destinations reserved.

All in the transaction of the decision. Victims go on serving until the start's workflow asks them to go; what
they hold becomes the start's in the very transaction that gives it back (see `PromiseRow`). A start that is
given up before gives its promises up, and its victims serve on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import PlannedVictim, StartPlan
from firstlight.database.fleet_view import FleetView, read_fleet
from firstlight.database.migration_writing import add_migration, are_moving, next_migration_id
from firstlight.database.plan_writing import Asked, GpuTaken, write_place
from firstlight.database.tables import InstanceRow, PromiseRow, ReservationRow
from firstlight.domain.errors import StaleEpoch, UnknownInstance
from firstlight.domain.estimator import estimate_start, givers_of
from firstlight.domain.lifecycle import InstanceState
from firstlight.domain.scheduler import Migrate, Place, Victim, VictimAction


async def write_migrate(
    session: AsyncSession,
    *,
    asked: Asked,
    view: FleetView,
    decision: Migrate,
    reason: str,
    instance_id: str | None = None,
) -> StartPlan:
    """Promise the victims' GPUs to the start, and reserve or promise where those that move go.

    Raises: GpuTaken when a victim is no longer what was decided on; the transaction is then lost.
    """
    rows = await _lock_victims(session, view, decision.victims)
    victims = [
        await _planned(session, view, victim, rows[victim.instance_id], rows, model=asked.model)
        for victim in decision.victims
    ]
    return await write_place(
        session,
        asked=asked,
        view=view,
        decision=decision,
        reason=reason,
        instance_id=instance_id,
        held=await _held(session, decision.host_id, decision.gpu_indices, rows),
        victims=victims,
    )


async def _lock_victims(
    session: AsyncSession, view: FleetView, victims: Sequence[Victim]
) -> dict[str, InstanceRow]:
    """Rows of all victims, and of the idle instances they move to, ours until the transaction ends."""
    reused = [victim.to_instance_id for victim in victims if victim.to_instance_id is not None]
    ids = sorted({*(victim.instance_id for victim in victims), *reused})
    # Whoever has one of them ends or moves it. Not waited for: it may wait for the very start we replan.
    found = await session.scalars(
        select(InstanceRow)
        .where(InstanceRow.instance_id.in_(ids))
        .order_by(InstanceRow.instance_id)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    rows = {row.instance_id: row for row in found}
    are_as_seen = all(
        one in rows and rows[one].state == InstanceState.READY and rows[one].epoch == view.serving[one].epoch
        for one in ids
    )
    if not are_as_seen or await are_moving(session, ids):
        raise GpuTaken
    return rows


async def _planned(
    session: AsyncSession,
    view: FleetView,
    victim: Victim,
    row: InstanceRow,
    rows: Mapping[str, InstanceRow],
    *,
    model: str,
) -> PlannedVictim:
    if victim.action is VictimAction.EVICT:
        return _ends(row, victim)
    reason = f"it makes room for {model}"
    theirs = await read_fleet(session, model=row.model, now_unix_s=view.snapshot.taken_at_unix_s)
    if victim.to_instance_id is not None:
        return await _moves_to(session, victim, row, rows[victim.to_instance_id], theirs, reason=reason)
    destination = await _destination(session, theirs, victim, row, rows, reason=reason)
    migration_id = await add_migration(
        session, row, destination.instance_id, reason=reason, transfer=theirs.wanted.transfer
    )
    return PlannedVictim(
        instance_id=row.instance_id,
        epoch=row.epoch,
        host_id=row.host_id,
        endpoint=row.endpoint or "",
        model=row.model,
        seconds=victim.seconds,
        migration_id=migration_id,
        transfer=theirs.wanted.transfer,
        destination=destination,
    )


def _ends(row: InstanceRow, victim: Victim) -> PlannedVictim:
    return PlannedVictim(
        instance_id=row.instance_id,
        epoch=row.epoch,
        host_id=row.host_id,
        endpoint=row.endpoint or "",
        model=row.model,
        seconds=victim.seconds,
    )


async def _moves_to(
    session: AsyncSession,
    victim: Victim,
    row: InstanceRow,
    idle: InstanceRow,
    theirs: FleetView,
    *,
    reason: str,
) -> PlannedVictim:
    transfer = theirs.wanted.transfer
    migration_id = await add_migration(session, row, idle.instance_id, reason=reason, transfer=transfer)
    return PlannedVictim(
        instance_id=row.instance_id,
        epoch=row.epoch,
        host_id=row.host_id,
        endpoint=row.endpoint or "",
        model=row.model,
        seconds=victim.seconds,
        migration_id=migration_id,
        transfer=transfer,
        to_instance_id=idle.instance_id,
        to_epoch=idle.epoch,
        to_host_id=idle.host_id,
        to_endpoint=idle.endpoint or "",
    )


async def _destination(
    session: AsyncSession,
    theirs: FleetView,
    victim: Victim,
    row: InstanceRow,
    rows: Mapping[str, InstanceRow],
    *,
    reason: str,
) -> StartPlan:
    to_host = victim.to_host
    host = next((one for one in theirs.snapshot.hosts if one.host_id == to_host), None)
    if host is None or to_host is None:
        raise GpuTaken
    model = theirs.wanted.model
    place = Place(
        host_id=to_host,
        gpu_indices=victim.to_gpu_indices,
        estimate=estimate_start(model, host, theirs.snapshot, givers=givers_of(model, theirs.snapshot)),
        candidates=(),
    )
    return await write_place(
        session,
        asked=Asked(request_id=await next_migration_id(session, row), model=model.name, deadline_s=None),
        view=theirs,
        decision=place,
        reason=f"migration: {reason}",
        held=await _held(session, to_host, victim.to_gpu_indices, rows),
    )


async def _held(
    session: AsyncSession, host_id: str, gpu_indices: Sequence[int], rows: Mapping[str, InstanceRow]
) -> list[int]:
    """Those of the GPUs that victims hold now. What anybody else holds is found taken when it is reserved."""
    found = await session.scalars(
        select(ReservationRow.gpu_index).where(
            ReservationRow.host_id == host_id,
            ReservationRow.gpu_index.in_(gpu_indices),
            ReservationRow.instance_id.in_(list(rows)),
        )
    )
    return sorted(found)


# How many of a start's GPUs others still hold, to be selected with its row: asked for by itself, before or
# after, the answer may be about another moment, at which the start was given up or planned anew.
GPUS_AWAITED = (
    select(func.count())
    .select_from(PromiseRow)
    .where(PromiseRow.instance_id == InstanceRow.instance_id)
    .correlate(InstanceRow)
    .scalar_subquery()
)


async def awaited_gpus(session: AsyncSession, *, instance_id: str, epoch: int) -> int:
    """How many of its GPUs others still hold, of a plan in force. Raises: UnknownInstance, StaleEpoch."""
    found = await session.execute(
        select(InstanceRow.state, InstanceRow.epoch, InstanceRow.is_live, GPUS_AWAITED).where(
            InstanceRow.instance_id == instance_id
        )
    )
    rows = found.one_or_none()
    if rows is None:
        raise UnknownInstance(f"there is no instance {instance_id!r}", instance_id=instance_id)
    state, in_force, is_live, awaited = rows
    if in_force != epoch or not is_live:
        raise StaleEpoch(
            f"instance {instance_id} is {state} under epoch {in_force}; epoch {epoch} is too late",
            instance_id=instance_id,
            epoch=epoch,
        )
    return int(awaited)

"""A migration that came to nothing, granted another attempt: with a place that is reserved anew."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.migrations import MovingInstance, ResumedMigration
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_fleet
from firstlight.database.locks import lock_decision
from firstlight.database.migration_grants import serving_destination
from firstlight.database.migrations_repository import choose_destination, lock_serving
from firstlight.database.plan_writing import Asked, GpuTaken, write_place
from firstlight.database.tables import InstanceRow, MigrationRow
from firstlight.domain.errors import Conflict, NoCapacity, NotFound, StaleEpoch

ATTEMPTS = 5


async def resume_migration(
    database: Database,
    *,
    migration_id: str,
    source: MovingInstance,
    now_unix_s: float,
    is_rehearsal: bool = False,
) -> ResumedMigration:
    """Reopen a failed migration's row, its destination kept if it serves, else planned anew.

    Raises: NotFound, UnknownInstance; StaleEpoch when the source runs under another epoch; Conflict when it
    does not serve, moves already, or this migration has not failed; NoCapacity.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with database.session() if is_rehearsal else database.transaction() as session:
                model = await _model_of(session, source.instance_id)
                await lock_decision(session, model, is_last_attempt=attempt == ATTEMPTS)
                return await _resume(session, migration_id, source, now_unix_s)
        except GpuTaken:
            continue
    raise AssertionError("the last attempt shuts out all other decisions")


async def _model_of(session: AsyncSession, instance_id: str) -> str:
    model = await session.scalar(select(InstanceRow.model).where(InstanceRow.instance_id == instance_id))
    if model is None:
        raise NotFound(f"instance {instance_id} is forgotten: nothing is left to move")
    return model


async def _resume(
    session: AsyncSession, migration_id: str, source: MovingInstance, now_unix_s: float
) -> ResumedMigration:
    running = await lock_serving(session, source.instance_id)
    if running.epoch != source.epoch:
        raise StaleEpoch(
            f"instance {source.instance_id} runs under epoch {running.epoch}; this migration knows "
            f"{source.epoch}",
            instance_id=source.instance_id,
            epoch=source.epoch,
        )
    row = await session.get(MigrationRow, migration_id, with_for_update=True)
    if row is None:
        raise NotFound(f"migration {migration_id} is forgotten")
    if row.state != "failed":
        raise Conflict(f"migration {migration_id} is {row.state}; only one that failed can be resumed")
    reused = await serving_destination(session, row.destination_instance_id)
    destination = None
    if reused is None:
        before = await session.get(InstanceRow, row.destination_instance_id)
        view = await read_fleet(session, model=running.model, now_unix_s=now_unix_s)
        try:
            decision = choose_destination(view, running, before.host_id if before else None)
        except NoCapacity:
            # Not there any more: anywhere is better than nowhere.
            decision = choose_destination(view, running, None)
        asked = Asked(request_id=f"replay-{migration_id}", model=running.model, deadline_s=None)
        destination = await write_place(
            session, asked=asked, view=view, decision=decision, reason=f"migration resumed: {row.reason}"
        )
        row.destination_instance_id = destination.instance_id
    _reopen(row)
    await session.flush()
    return ResumedMigration(attempt=row.attempt, destination=destination, reused=reused)


def _reopen(row: MigrationRow) -> None:
    row.state, row.ended_at, row.failure = "running", None, None
    row.attempt += 1
    # The reconciler counts from here how long nobody carries it out.
    row.started_at = func.now()

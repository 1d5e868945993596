"""Another attempt of a migration, as the rows of whoever granted it say."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.migrations import MovingInstance, ResumedMigration
from firstlight.database.current_plan import current_plan
from firstlight.database.tables import HostRow, InstanceRow, MigrationRow
from firstlight.domain.errors import Conflict
from firstlight.domain.lifecycle import HostState, InstanceState


async def serving_destination(session: AsyncSession, instance_id: str) -> MovingInstance | None:
    """The destination, where requests may have moved already, if it serves on a host that takes more."""
    found = await session.get(InstanceRow, instance_id)
    if found is None or found.state != InstanceState.READY or found.endpoint is None:
        return None
    host = await session.get(HostRow, found.host_id)
    if host is None or host.state != HostState.READY:
        return None
    return MovingInstance(found.instance_id, found.epoch, found.host_id, found.endpoint)


async def granted_attempt(session: AsyncSession, row: MigrationRow) -> ResumedMigration:
    """What `resume_migration` has granted, as its rows say."""
    plan = await current_plan(session, row.destination_instance_id)
    reused = None if plan is not None else await serving_destination(session, row.destination_instance_id)
    if plan is None and reused is None:
        raise Conflict(f"the place reserved for {row.migration_id} is gone; replay it again")
    return ResumedMigration(attempt=row.attempt, destination=plan, reused=reused)

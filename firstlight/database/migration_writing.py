"""Rows of live migrations as they begin, in the transaction that plans them."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.naming import migration_workflow_id
from firstlight.database.tables import InstanceRow, MigrationRow


async def add_migration(
    session: AsyncSession, source: InstanceRow, destination_instance_id: str, *, reason: str, transfer: str
) -> str:
    """Write that `source`, whose row the caller has locked, moves from now on; returns the migration's id."""
    migration_id = await next_migration_id(session, source)
    session.add(
        MigrationRow(
            migration_id=migration_id,
            source_instance_id=source.instance_id,
            destination_instance_id=destination_instance_id,
            state="running",
            reason=reason,
            transfer=transfer,
        )
    )
    await session.flush()
    return migration_id


async def next_migration_id(session: AsyncSession, source: InstanceRow) -> str:
    earlier = await session.scalar(
        select(func.count()).where(MigrationRow.source_instance_id == source.instance_id)
    )
    return migration_workflow_id(source.instance_id, (earlier or 0) + 1)


async def are_moving(session: AsyncSession, instance_ids: Collection[str]) -> bool:
    """Whether any of these instances moves now, or another one moves to it."""
    found = await session.scalar(
        select(func.count()).where(
            MigrationRow.state == "running",
            or_(
                MigrationRow.source_instance_id.in_(instance_ids),
                MigrationRow.destination_instance_id.in_(instance_ids),
            ),
        )
    )
    return bool(found)

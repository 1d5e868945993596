"""Migrations that were planned for a start which never began: no workflow will ever carry them out."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.migrations import FinishMigrationInput
from firstlight.contracts.starts import AbandonInput, StartPlan
from firstlight.database.migrations_repository import finish_migration
from firstlight.database.starts_repository import abandon_start
from firstlight.domain.errors import StartFailed


async def call_off_moves(session: AsyncSession, plan: StartPlan, *, failure: str) -> None:
    """Give the destinations of its victims back and close the migrations; the victims serve on.

    Only for a start whose workflow was never begun: a destination may serve once it was.
    """
    for victim in plan.victims:
        if not victim.is_moved:
            continue
        if victim.destination is not None:
            abandoned = AbandonInput(plan=victim.destination, failure_code=StartFailed.code, failure=failure)
            await abandon_start(session, abandoned)
        await finish_migration(session, FinishMigrationInput(victim.migration_id, "failed", failure=failure))

"""A start's GPUs that others still hold: attached is only what the books say is this start's own."""

from __future__ import annotations

import asyncio

from activities.patience import until_database_answers
from firstlight.contracts.starts import StartPlan
from firstlight.database.connection import Database
from firstlight.database.giving_way import awaited_gpus

# Somebody waits; the question is one look at an index.
LOOK_EVERY_S = 0.03


async def until_gpus_are_ours(database: Database, plan: StartPlan) -> None:
    """Returns once every GPU of the plan is reserved for it. The activity's own time-out bounds the wait.

    Raises: StaleEpoch when the plan was replaced or given up.
    """
    if not plan.awaits_gpus:
        return

    async def look() -> int:
        async with database.session() as session:
            return await awaited_gpus(session, instance_id=plan.instance_id, epoch=plan.epoch)

    # Another process gives them back, and no notification tells of a single GPU.
    while await until_database_answers(look):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)

"""A start's GPUs that others still hold: attached is only what the books say is this start's own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from activities.patience import until_database_answers
from firstlight.contracts.starts import StartPlan
from firstlight.database.connection import INSTANCE_CHANNEL, Database
from firstlight.database.giving_way import awaited_gpus

# Who gives a GPU back changes its own row, and that is notified. Looked at without a word as often as this.
LOOK_AGAIN_S = 5.0


async def until_gpus_are_ours(database: Database, plan: StartPlan) -> None:
    """Returns once every GPU of the plan is reserved for it. The activity's own time-out bounds the wait.

    Raises: StaleEpoch when the plan was replaced or given up.
    """
    if not plan.awaits_gpus:
        return
    changed = asyncio.Event()

    async def listen() -> None:
        # What changed before the connection was there is seen too: its first item is that it is.
        async for _ in database.listen(INSTANCE_CHANNEL):
            changed.set()

    async def look() -> int:
        async with database.session() as session:
            return await awaited_gpus(session, instance_id=plan.instance_id, epoch=plan.epoch)

    listening = asyncio.create_task(listen(), name=f"GPUs of {plan.instance_id}")
    try:
        while await until_database_answers(look):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await changed.wait()
            changed.clear()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

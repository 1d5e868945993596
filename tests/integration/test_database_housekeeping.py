"""What nobody needs any more is forgotten, and nothing else."""

from __future__ import annotations

from fleets import add_host, add_model, placed, plan, running
from sqlalchemy import text

from firstlight.contracts.instances import FinishInput
from firstlight.database import housekeeping, instances_repository
from firstlight.database.connection import Database

OLD = "now() - interval '31 days'"


async def finished(database: Database, model: str) -> str:
    start = await running(database, model)
    async with database.transaction() as session:
        await instances_repository.finish_instance(
            session, FinishInput(start.instance_id, start.epoch, "stopped", "test")
        )
    return start.instance_id


async def test_old_starts_go_with_their_decisions_and_figures(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    old, held, young = [await finished(database, "tiny") for _ in range(3)]
    live = (await placed(database, "tiny")).instance_id
    await plan(database, "tiny")  # a refusal, at the model's maximum
    async with database.transaction() as session:
        for instance_id in (old, held):
            await session.execute(
                text(f"UPDATE instances SET created_at = {OLD}, ended_at = {OLD} WHERE instance_id = :it"),
                {"it": instance_id},
            )
        await session.execute(
            text(f"UPDATE instances SET created_at = {OLD} WHERE instance_id IN (:young, :live)"),
            {"young": young, "live": live},
        )
    async with database.transaction() as other:
        await other.execute(text("SELECT 1 FROM instances WHERE instance_id = :it FOR UPDATE"), {"it": held})
        async with database.transaction() as session:
            assert await housekeeping.forget_old_starts(session) == 1, "what is held is not waited for"
    async with database.transaction() as session:
        kept = set(await session.scalars(text("SELECT instance_id FROM instances")))
        decided = set(await session.scalars(text("SELECT instance_id FROM decisions WHERE kind = 'place'")))
        assert kept == decided == {held, young, live}
        assert await housekeeping.forget_old_starts(session) == 1
        assert await housekeeping.forget_old_starts(session) == 0

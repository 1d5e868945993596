"""What migrations took is kept beside what was foretold, and the next decision is made from it."""

from __future__ import annotations

import time
from statistics import median

import pytest
from conftest import execute
from fleets import add_host, add_model, running

from firstlight.contracts.instances import FinishInput
from firstlight.contracts.migrations import FinishMigrationInput, MigrationInput, MoveReceipt, RoundRow
from firstlight.contracts.starts import StartPlan
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_fleet, read_picture
from firstlight.database.housekeeping import finish_deletes
from firstlight.database.instances_repository import finish_instance
from firstlight.database.migrations_repository import finish_migration, list_migrations, plan_migration
from firstlight.database.models_repository import begin_delete
from firstlight.database.records import MigrationRecord
from firstlight.domain.estimator import move_key
from firstlight.domain.migration import PRIOR_MOVE, MoveModel

KEY = move_key("tiny", "cpu-2c")


@pytest.fixture
async def source(database: Database) -> StartPlan:
    for host in ("host-a", "host-b"):
        await add_host(database, host, gpu_count=2)
    await add_model(database, "tiny", max_instances=3)
    return await running(database, "tiny")


async def migrate(database: Database, source: StartPlan, *, transfer: str = "exact") -> MigrationInput:
    return await plan_migration(
        database,
        instance_id=source.instance_id,
        to_host=None,
        reason="test",
        transfer=transfer,
        now_unix_s=time.time(),
    )


async def end(
    database: Database,
    source: StartPlan,
    *,
    tokens: list[int],
    seconds: float,
    state: str = "completed",
    transfer: str = "exact",
) -> None:
    """A whole migration, after which its destination has ended and the source serves on."""
    planned = await migrate(database, source, transfer=transfer)
    move = MoveReceipt(
        rounds=[RoundRow(1, len(tokens), sum(tokens), 1000, seconds)],
        handed_over=len(tokens),
        elapsed_s=seconds,
        observations=[[count, seconds] for count in tokens],
    )
    assert planned.destination is not None
    async with database.transaction() as session:
        for _ in range(2):
            await finish_migration(
                session, FinishMigrationInput(planned.migration_id, state, start_s=1.0, move=move)
            )
        await finish_instance(
            session,
            FinishInput(planned.destination.instance_id, planned.destination.epoch, "stopped", "test"),
        )


async def moves(database: Database) -> dict[str, MoveModel]:
    async with database.session() as session:
        view = await read_fleet(session, model="tiny", now_unix_s=time.time())
        picture = await read_picture(session, now_unix_s=time.time())
    assert view.snapshot.moves == picture.snapshot.moves
    return dict(view.snapshot.moves)


async def records(database: Database) -> list[MigrationRecord]:
    async with database.session() as session:
        return await list_migrations(session, limit=50)


async def test_the_next_decision_knows_what_moves_took(database: Database, source: StartPlan) -> None:
    assert await moves(database) == {}
    for number in range(8):
        count = 200 * (number + 1)
        # Two requests of an instance count together: that is what a victim is.
        await end(database, source, tokens=[count, count], seconds=0.1 + 0.001 * 2 * count)
    learned = (await moves(database))[KEY]
    assert learned.observations == 8
    assert learned.seconds(1000) == pytest.approx(1.1, rel=0.02)


async def test_predicted_stands_beside_actual_and_the_median_error_is_small(
    database: Database, source: StartPlan
) -> None:
    """Each is foretold by the moves before it alone; a fifth of them is odd."""
    for number in range(15):
        count = (137 * (number + 3)) % 1900 + 64
        odd = 8.0 if number % 5 == 4 else 1.0
        await end(database, source, tokens=[count], seconds=(0.08 + 0.0007 * count) * odd)
    found = list(reversed(await records(database)))
    first = found[0]
    assert first.predicted_move_s == pytest.approx(PRIOR_MOVE.seconds(first.observations[0].tokens))
    assert first.predicted_start_s is not None and first.predicted_start_s > 0
    errors = [abs((one.predicted_move_s or 0.0) - one.move_s) / one.move_s for one in found[5:]]
    assert median(errors) < 0.15


async def test_what_came_to_nothing_teaches_nothing(database: Database, source: StartPlan) -> None:
    await end(database, source, tokens=[500], seconds=9.0, state="failed")
    await end(database, source, tokens=[], seconds=9.0)
    assert await moves(database) == {}
    assert [one.predicted_move_s for one in await records(database)] == [None, None]


async def test_each_way_of_sending_is_learned_by_itself(database: Database, source: StartPlan) -> None:
    for _ in range(4):
        await end(database, source, tokens=[100], seconds=0.1)
    for _ in range(4):
        await end(database, source, tokens=[100], seconds=5.0, transfer="tokens")
    # What is sent now is what the last one was sent as.
    assert (await moves(database))[KEY].seconds(100) == pytest.approx(5.0, rel=0.01)
    await end(database, source, tokens=[100], seconds=0.1)
    assert (await moves(database))[KEY].seconds(100) == pytest.approx(0.1, rel=0.01)


async def test_only_what_runs_burdens_a_decision(
    database: Database, database_url: str, source: StartPlan
) -> None:
    await end(database, source, tokens=[100], seconds=0.1)
    execute(
        database_url,
        "INSERT INTO move_models SELECT 'm' || n, 'cpu-2c', 0, 0, 1 FROM generate_series(1, 50) n",
    )
    assert set(await moves(database)) == {KEY}


async def test_a_model_deployed_anew_under_the_name_begins_anew(
    database: Database, source: StartPlan
) -> None:
    await end(database, source, tokens=[100], seconds=5.0)
    assert KEY in await moves(database)
    async with database.transaction() as session:
        await finish_instance(session, FinishInput(source.instance_id, source.epoch, "stopped", "test"))
        await begin_delete(session, "tiny")
        await finish_deletes(session)
    await add_model(database, "tiny", max_instances=3)
    await running(database, "tiny")
    assert await moves(database) == {}

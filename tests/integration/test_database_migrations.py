"""Migrations in Postgres: a place reserved once, one at a time, closed with what came of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from fleets import add_host, add_model, running

from firstlight.contracts.instances import BeginDrainInput
from firstlight.contracts.migrations import (
    FinishMigrationInput,
    MigrationInput,
    MoveReceipt,
    MovingInstance,
    RoundRow,
    ServeOnInput,
)
from firstlight.contracts.starts import StartPlan
from firstlight.database import instances_repository
from firstlight.database.connection import Database
from firstlight.database.host_draining import set_draining
from firstlight.database.migrations_repository import (
    finish_migration,
    list_migrations,
    moving_instances,
    plan_migration,
    serve_on,
    stale_migrations,
)
from firstlight.domain.errors import Conflict, NoCapacity, UnknownHost, UnknownInstance
from firstlight.domain.lifecycle import InstanceState
from firstlight.domain.migration import MoveObservation


async def scene(database: Database, *hosts: str) -> StartPlan:
    for host in hosts:
        await add_host(database, host)
    await add_model(database, "tiny")
    return await running(database, "tiny")


async def migrate(database: Database, instance_id: str, to: str | None = None) -> MigrationInput:
    return await plan_migration(
        database,
        instance_id=instance_id,
        to_host=to,
        reason="test",
        transfer="exact",
        now_unix_s=time.time(),
    )


async def state_of(database: Database, instance_id: str) -> InstanceState:
    async with database.session() as session:
        return (await instances_repository.get_instance(session, instance_id)).state


async def test_a_place_is_reserved_where_the_instance_does_not_run(database: Database) -> None:
    source = await scene(database, "host-a", "host-b")
    planned = await migrate(database, source.instance_id)
    assert planned.destination.host_id != source.host_id
    assert planned.migration_id == f"migration/{source.instance_id}/1"
    assert planned.source.epoch == source.epoch < planned.destination.epoch
    assert await state_of(database, planned.destination.instance_id) is InstanceState.STARTING
    # The maximum of instances does not stand in the way: the source goes.
    assert await state_of(database, source.instance_id) is InstanceState.READY


async def test_an_idle_instance_elsewhere_is_reused(database: Database) -> None:
    for host in ("host-a", "host-b"):
        await add_host(database, host)
    await add_model(database, "tiny", max_instances=2)
    source, other = await running(database, "tiny"), await running(database, "tiny", may_wait=False)
    assert source.host_id != other.host_id
    asked: list[str] = []

    async def idle(others: Sequence[MovingInstance]) -> MovingInstance | None:
        asked.extend(one.instance_id for one in others)
        return others[0]

    planned = await plan_migration(
        database,
        instance_id=source.instance_id,
        to_host=None,
        reason="test",
        transfer="exact",
        now_unix_s=time.time(),
        find_idle=idle,
    )
    assert asked == [other.instance_id]
    assert planned.destination is None and planned.reused is not None
    assert planned.destination_instance_id == other.instance_id
    assert planned.destination_epoch == other.epoch
    # One that moves is no destination itself, and it takes no host's room.
    with pytest.raises(NoCapacity):
        await plan_migration(
            database,
            instance_id=other.instance_id,
            to_host=None,
            reason="test",
            transfer="exact",
            now_unix_s=time.time(),
            find_idle=none_found,
        )


async def none_found(others: Sequence[MovingInstance]) -> MovingInstance | None:
    assert not others
    return None


async def test_many_ask_at_once_and_one_moves(database: Database) -> None:
    source = await scene(database, "host-a", "host-b", "host-c")
    outcomes = await asyncio.gather(
        *(migrate(database, source.instance_id) for _ in range(6)), return_exceptions=True
    )
    assert sum(isinstance(one, MigrationInput) for one in outcomes) == 1
    assert all(isinstance(one, MigrationInput | Conflict) for one in outcomes), outcomes
    async with database.session() as session:
        assert await moving_instances(session, [source.instance_id]) == {source.instance_id}
        assert len(await list_migrations(session)) == 1


async def test_what_has_nowhere_to_go_changes_nothing(database: Database) -> None:
    source = await scene(database, "host-a")
    with pytest.raises(NoCapacity):
        await migrate(database, source.instance_id)
    with pytest.raises(UnknownHost):
        await migrate(database, source.instance_id, "host-x")
    with pytest.raises(Conflict):
        await migrate(database, source.instance_id, "host-a")
    with pytest.raises(UnknownInstance):
        await migrate(database, "i-none")
    async with database.session() as session:
        assert await list_migrations(session) == []


async def test_a_draining_host_is_no_destination(database: Database) -> None:
    source = await scene(database, "host-a", "host-b", "host-c")
    [other, last] = sorted({"host-a", "host-b", "host-c"} - {source.host_id})
    async with database.transaction() as session:
        await set_draining(session, other, is_draining=True)
        await set_draining(session, other, is_draining=True)
    with pytest.raises(NoCapacity):
        await migrate(database, source.instance_id, other)
    assert (await migrate(database, source.instance_id)).destination.host_id == last
    async with database.transaction() as session:
        await set_draining(session, other, is_draining=False)
    with pytest.raises(UnknownHost):
        async with database.transaction() as session:
            await set_draining(session, "host-x", is_draining=True)


async def drain(database: Database, planned: MigrationInput) -> None:
    source = planned.source
    request = BeginDrainInput(source.instance_id, source.epoch, planned.migration_id)
    async with database.transaction() as session:
        assert (await instances_repository.begin_drain(session, request)).draining


async def test_a_source_serves_on_only_if_it_was_drained_for_this_migration(database: Database) -> None:
    source = await scene(database, "host-a", "host-b")
    planned = await migrate(database, source.instance_id)
    await drain(database, planned)
    other = ServeOnInput("migration/other/1", planned.source)
    async with database.transaction() as session:
        assert not await serve_on(session, other)
    assert await state_of(database, source.instance_id) is InstanceState.DRAINING
    for _ in range(2):
        async with database.transaction() as session:
            assert await serve_on(session, ServeOnInput(planned.migration_id, planned.source))
    assert await state_of(database, source.instance_id) is InstanceState.READY


async def test_the_first_end_stays(database: Database) -> None:
    source = await scene(database, "host-a", "host-b", "host-c")
    planned = await migrate(database, source.instance_id)
    move = MoveReceipt(
        rounds=[RoundRow(1, 2, 600, 9_000_000, 0.2), RoundRow(2, 1, 9, 140_000, 0.01)],
        handed_over=2,
        held_s=0.012,
        elapsed_s=0.4,
        observations=[[310.0, 0.3], [299.0, 0.35]],
    )
    for state in ("completed", "failed"):
        async with database.transaction() as session:
            await finish_migration(
                session, FinishMigrationInput(planned.migration_id, state, start_s=1.5, move=move)
            )
    async with database.session() as session:
        [row] = await list_migrations(session, model="tiny")
    assert (row.state, row.requests_moved, row.rounds, row.tokens_moved) == ("completed", 2, 2, 609)
    assert (row.bytes_moved, row.start_s, row.move_s, row.pause_s) == (9_140_000, 1.5, 0.4, 0.012)
    assert row.observations == (MoveObservation(310, 0.3), MoveObservation(299, 0.35))
    # And the next one has a number of its own.
    assert (await migrate(database, source.instance_id)).migration_id.endswith("/2")


async def test_a_migration_that_never_began_is_found(database: Database) -> None:
    source = await scene(database, "host-a", "host-b")
    planned = await migrate(database, source.instance_id)
    async with database.session() as session:
        assert await stale_migrations(session, older_than_s=60.0) == []
        [lost] = await stale_migrations(session, older_than_s=0.0)
    assert (lost.migration_id, lost.source) == (planned.migration_id, planned.source)

"""Starts that others give way to, in Postgres: nobody else gets the GPU, and nothing is left behind."""

from __future__ import annotations

import asyncio
import time

import pytest
from fleets import add_host, add_model, placed, plan, publish, running
from giving_way_scene import abandon, end, has_load, is_busy, one_host, says, two_hosts
from sqlalchemy import select, text

from firstlight.contracts.hosts import EngineRow, FailHostInput, HostReport, MendInput
from firstlight.contracts.instances import BeginDrainInput, FinishInput
from firstlight.contracts.starts import AbandonInput, ReplanInput, StartPlan
from firstlight.database import (
    hosts_repository,
    instances_repository,
    models_repository,
    starts_repository,
)
from firstlight.database.connection import Database
from firstlight.database.current_plan import replacement_of
from firstlight.database.giving_way import awaited_gpus
from firstlight.database.migrations_repository import list_migrations, stale_migrations
from firstlight.database.moves_called_off import call_off_moves
from firstlight.database.tables import PromiseRow, ReservationRow
from firstlight.domain.errors import StaleEpoch
from firstlight.domain.scheduler import Migrate, Place, Wait


async def holders(database: Database) -> dict[tuple[str, int], str]:
    async with database.session() as session:
        rows = await session.scalars(select(ReservationRow))
        return {(row.host_id, row.gpu_index): row.instance_id for row in rows}


async def promised(database: Database) -> dict[tuple[str, int], str]:
    async with database.session() as session:
        rows = await session.scalars(select(PromiseRow))
        return {(row.host_id, row.gpu_index): row.instance_id for row in rows}


async def test_an_idle_instance_gives_way_and_its_gpu_is_handed_on(database: Database) -> None:
    old = await one_host(database)
    planned = await plan(database, "new", ask_engines=says())
    assert isinstance(planned.decision, Migrate) and planned.plan is not None
    new = planned.plan
    [victim] = new.victims
    assert (victim.instance_id, victim.epoch, victim.is_moved) == (old.instance_id, old.epoch, False)
    assert new.awaits_gpus and new.gpu_indices == [0]
    # Until it has gone the GPU is the old one's, and promised to nobody but the new one.
    assert await holders(database) == {("host-a", 0): old.instance_id}
    assert await promised(database) == {("host-a", 0): new.instance_id}
    assert await awaits(database, new) == 1
    third = await plan(database, "other", ask_engines=says())
    assert third.plan is None
    await end(database, old)
    assert await holders(database) == {("host-a", 0): new.instance_id}
    assert await promised(database) == {} and await awaits(database, new) == 0
    await publish(database, new)


async def awaits(database: Database, start: StartPlan) -> int:
    async with database.session() as session:
        return await awaited_gpus(session, instance_id=start.instance_id, epoch=start.epoch)


async def test_nobody_gives_way_whose_engine_is_not_known_or_does_not_answer(database: Database) -> None:
    old = await one_host(database)
    silent = await plan(database, "new", ask_engines=says(**{old.instance_id: None}))
    assert isinstance(silent.decision, Wait)
    unasked = await plan(database, "new")
    assert isinstance(unasked.decision, Wait)
    # Busy again since its host's agent wrote that it was idle, and nowhere to move to.
    busy = await plan(database, "new", ask_engines=says(**{old.instance_id: is_busy(old.instance_id)}))
    assert busy.plan is None
    assert await promised(database) == {}


async def test_gpus_of_a_busy_instance_are_waited_for_and_not_for_its_keep_alive_time(
    database: Database,
) -> None:
    """It may be idle at any moment, and then it gives way."""
    old = await one_host(database)
    await has_load(database, old, requests=1, tokens=10)
    planned = await plan(database, "new", deadline_s=60.0, ask_engines=says())
    assert isinstance(planned.decision, Wait), planned.decision
    assert planned.decision.ready_in_s is not None and planned.decision.ready_in_s < 60.0
    assert planned.decision.instance_id is None


async def test_a_needed_instance_stays(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "needed", min_instances=1)
    await add_model(database, "new")
    await has_load(database, await running(database, "needed"))
    assert (await plan(database, "new", ask_engines=says())).plan is None


async def test_an_important_instance_stays_and_a_less_important_one_goes(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "important", priority=5)
    await add_model(database, "new")
    await add_model(database, "urgent", priority=9)
    await has_load(database, await running(database, "important"))
    assert (await plan(database, "new", ask_engines=says())).plan is None
    assert isinstance((await plan(database, "urgent", ask_engines=says())).decision, Migrate)


async def test_a_start_given_up_gives_its_promise_up(database: Database) -> None:
    old = await one_host(database)
    new = await placed(database, "new", ask_engines=says())
    await abandon(database, new)
    assert await promised(database) == {}
    assert await holders(database) == {("host-a", 0): old.instance_id}
    with pytest.raises(StaleEpoch):
        await awaits(database, new)
    await end(database, old)
    assert await holders(database) == {}
    # And the next one is placed as ever.
    assert isinstance((await plan(database, "other")).decision, Place)


async def test_a_start_given_up_while_its_gpus_are_asked_for_has_none(database: Database) -> None:
    """Its promises are gone then: that is not to be taken for GPUs that have become its own."""
    await one_host(database)
    new = await placed(database, "new", ask_engines=says())
    async with database.transaction() as session:
        await session.execute(text(f"LOCK TABLE {PromiseRow.__tablename__} IN ACCESS EXCLUSIVE MODE"))
        asking = asyncio.create_task(awaits(database, new))
        async with asyncio.timeout(10):
            while not await waits_for_a_lock(database):
                assert not asking.done()
                await asyncio.sleep(0.01)
        await starts_repository.abandon_start(session, AbandonInput(new, "start_failed", "test"))
    with pytest.raises(StaleEpoch):
        await asking


async def waits_for_a_lock(database: Database) -> bool:
    async with database.session() as session:
        found = await session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        return bool(found)


async def test_giving_up_and_giving_back_at_once_never_meet_across(database: Database) -> None:
    """Whichever comes first, the GPU is free afterwards, and neither waits for the other for ever."""
    old = await one_host(database)
    for _ in range(10):
        new = await placed(database, "new", ask_engines=says())
        assert new.awaits_gpus
        await asyncio.gather(end(database, old), abandon(database, new))
        assert (await holders(database), await promised(database)) == ({}, {})
        old = await running(database, "old")
        await has_load(database, old)


async def test_a_busy_instance_moves_to_where_its_bytes_are_near(database: Database) -> None:
    old = await two_hosts(database)
    busy = says(**{old.instance_id: is_busy(old.instance_id, requests=2, tokens=700)})
    planned = await plan(database, "new", ask_engines=busy)
    assert isinstance(planned.decision, Migrate), planned.candidates_markdown
    new = planned.plan
    assert new is not None and new.host_id == "host-a"
    assert "moves to host-b" in planned.candidates_markdown
    [victim] = new.victims
    destination = victim.destination
    assert victim.is_moved and destination is not None and victim.transfer == "exact"
    assert (destination.host_id, destination.gpu_indices) == ("host-b", [0])
    assert await holders(database) == {
        ("host-a", 0): old.instance_id,
        ("host-b", 0): destination.instance_id,
    }
    async with database.session() as session:
        [row] = await list_migrations(session)
    assert (row.migration_id, row.state, row.reason) == (
        victim.migration_id,
        "running",
        "it makes room for new",
    )
    # It moves already: nobody else may ask it to.
    assert (await plan(database, "new", may_wait=False, ask_engines=busy)).plan is None
    await publish(database, destination)
    await end(database, old)
    assert (await holders(database))[("host-a", 0)] == new.instance_id


async def test_a_models_own_policy_says_how_its_cache_travels(database: Database) -> None:
    old = await two_hosts(database)
    async with database.transaction() as session:
        await models_repository.scale_model(session, "old", transfer="fast")
    busy = says(**{old.instance_id: is_busy(old.instance_id)})
    [victim] = (await placed(database, "new", ask_engines=busy)).victims
    assert victim.transfer == "fast"


async def test_what_was_planned_for_a_start_that_never_began_is_undone(database: Database) -> None:
    old = await two_hosts(database)
    busy = says(**{old.instance_id: is_busy(old.instance_id)})
    new = await placed(database, "new", ask_engines=busy)
    async with database.transaction() as session:
        await starts_repository.abandon_start(session, AbandonInput(new, "start_failed", "no Temporal"))
        await call_off_moves(session, new, failure="no Temporal")
    assert await holders(database) == {("host-a", 0): old.instance_id}
    assert await promised(database) == {}
    async with database.session() as session:
        [row] = await list_migrations(session)
    assert (row.state, row.failure) == ("failed", "no Temporal")


async def test_the_reconciler_undoes_a_plan_that_nobody_carries_out(database: Database) -> None:
    """Whoever made it died before its workflow began."""
    old = await two_hosts(database)
    busy = says(**{old.instance_id: is_busy(old.instance_id)})
    new = await placed(database, "new", ask_engines=busy)
    [victim] = new.victims
    assert victim.destination is not None
    nobody = frozenset({new.instance_id, victim.destination.instance_id})
    engine = EngineRow(old.instance_id, old.epoch, "ready", victim.endpoint)
    for host_id, engines in (("host-a", [engine]), ("host-b", [])):
        report = HostReport(host_id, engines=engines)
        async with database.transaction() as session:
            await hosts_repository.mend_host(
                session, MendInput(report, stale_start_s=0.0), abandoned_starts=nobody
            )
    assert await holders(database) == {("host-a", 0): old.instance_id}
    assert await promised(database) == {}
    async with database.session() as session:
        stale = await stale_migrations(session, older_than_s=0.0)
    # Closed by the activity, which knows that no workflow of this name runs.
    assert [one.migration_id for one in stale] == [victim.migration_id]


async def test_a_replan_spares_who_stayed_and_repeats_its_answer(database: Database) -> None:
    old = await two_hosts(database)
    busy = says(**{old.instance_id: is_busy(old.instance_id)})
    new = await placed(database, "new", ask_engines=busy)
    async with database.transaction() as session:
        await call_off_moves(session, new, failure="the migration failed")
    request = ReplanInput(new, [], "the migration failed", spared=[old.instance_id])
    receipt = await starts_repository.replan_start(
        database, request, now_unix_s=time.time(), ask_engines=busy
    )
    # The other host has to fetch its bytes, but is free.
    assert receipt.plan is not None and receipt.plan.host_id == "host-b"
    assert receipt.plan.victims == [] and not receipt.plan.awaits_gpus
    assert await promised(database) == {}
    again = await starts_repository.replan_start(database, request, now_unix_s=time.time())
    assert again.plan is not None and again.plan.epoch == receipt.plan.epoch


async def test_a_replan_may_make_room_too_and_is_read_back_whole(database: Database) -> None:
    await add_host(database, "host-a")
    await add_host(database, "host-b")
    for name in ("old", "new"):
        await add_model(database, name)
    new = await placed(database, "new")
    old = await running(database, "old")
    await has_load(database, old)
    receipt = await starts_repository.replan_start(
        database,
        ReplanInput(new, [new.host_id], "the disk died"),
        now_unix_s=time.time(),
        ask_engines=says(),
    )
    assert receipt.plan is not None and receipt.plan.host_id == old.host_id
    assert [one.instance_id for one in receipt.plan.victims] == [old.instance_id]
    async with database.session() as session:
        read = await replacement_of(session, new)
    assert read is not None
    assert (read.victims, read.awaits_gpus) == (receipt.plan.victims, True)


async def test_a_lost_host_fails_who_was_there_and_leaves_the_start_to_be_planned_anew(
    database: Database,
) -> None:
    old = await one_host(database)
    new = await placed(database, "new", ask_engines=says())
    async with database.transaction() as session:
        receipt = await hosts_repository.fail_host(session, FailHostInput("host-a", 1, "test"))
    assert receipt.failed_instances == [old.instance_id]
    assert await holders(database) == {("host-a", 0): new.instance_id}
    await add_host(database, "host-b")
    again = await starts_repository.replan_start(
        database, ReplanInput(new, ["host-a"], "it is lost"), now_unix_s=time.time()
    )
    assert again.plan is not None and again.plan.host_id == "host-b"
    assert await holders(database) == {("host-b", 0): new.instance_id}


async def test_gpus_about_to_be_free_beside_the_bytes_are_worth_a_wait(database: Database) -> None:
    """host-a has the bytes and an instance that ends; a start on host-b, which is free, would fetch them."""
    await add_host(database, "host-a")
    await add_model(database, "old")
    await add_model(database, "new", source_bytes=50_000_000_000)
    old = await running(database, "old")
    await add_host(database, "host-b")
    async with database.transaction() as session:
        await hosts_repository.set_placements(
            session, host_id="host-a", checkpoint_id="new@abcd1234", ssd=True, dram=None,
            size_bytes=1_100_000_000, manifest_digest="d" * 64,
        )  # fmt: skip

    async def decided(waited_s: float | None) -> Wait | Place:
        planned = await plan(database, "new", ask_engines=says(), waited_s=waited_s)
        if planned.plan is not None:
            await abandon(database, planned.plan)
        assert isinstance(planned.decision, Wait | Place)
        return planned.decision

    async def on(host: str, waited_s: float | None) -> bool:
        decision = await decided(waited_s)
        return isinstance(decision, Place) and decision.host_id == host

    assert await on("host-b", 0.0), "nobody knows when one ends whose load is not known"
    await has_load(database, old, requests=1, tokens=10)
    busy = await plan(database, "new", ask_engines=says(), waited_s=0.0, excluded_hosts=frozenset({"host-b"}))
    assert isinstance(busy.decision, Wait)
    assert await on("host-b", 0.0), "nobody knows when a busy one ends"
    async with database.transaction() as session:
        await instances_repository.begin_drain(session, BeginDrainInput(old.instance_id, old.epoch, "idle"))
    wait = await decided(0.0)
    assert isinstance(wait, Wait) and wait.instance_id is None and wait.ready_in_s
    assert await on("host-b", None), "who does not say how long it has waited never does"
    assert await on("host-b", 10_000.0), "not for ever"
    async with database.transaction() as session:
        await instances_repository.finish_instance(
            session, FinishInput(old.instance_id, old.epoch, "stopped", "idle")
        )
    assert await on("host-a", 1.0)

"""bring_up against a store and a supervisor that the test holds by the hand, and a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from firstlight.contracts.starts import BringUpReceipt, StartPlan
from firstlight.database import instances_repository
from firstlight.database.connection import Database
from firstlight.database.instance_closing import lock_instance
from firstlight.database.keys_repository import list_audit
from firstlight.database.records import InstanceRecord
from firstlight.domain.errors import ChecksumMismatch, SourceUnreachable, StaleEpoch
from firstlight.domain.lifecycle import InstanceState
from tests.integration.fleets import add_host, add_model, placed
from tests.integration.giving_way_scene import abandon, end, one_host, says
from tests.integration.held_host import HeldHost, bringing_up


@asynccontextmanager
async def under_way(
    database: Database, held: HeldHost, *, fetch: bool = False
) -> AsyncIterator[tuple[StartPlan, asyncio.Task[BringUpReceipt]]]:
    """A bring_up whose engine is attached and routed to, and whose bytes still come."""
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    plan = await placed(database, "tiny")
    async with bringing_up(database, held, plan, fetch=fetch) as running:
        async with asyncio.timeout(10):
            while (await record(database, plan)).state is not InstanceState.READY:
                assert not running.done(), running
                await asyncio.sleep(0.02)
        assert not running.done(), "it ended before the bytes had come"
        yield plan, running


async def record(database: Database, plan: StartPlan) -> InstanceRecord:
    async with database.session() as session:
        return await instances_repository.get_instance(session, plan.instance_id)


@pytest.mark.parametrize("fetch", [False, True])
async def test_routed_while_bytes_come_and_done_when_they_are_there(database: Database, fetch: bool) -> None:
    held = HeldHost()
    async with under_way(database, held, fetch=fetch) as (plan, running):
        held.bytes_may_end.set()
        receipt = await running
        phases = receipt.phases
        assert (await record(database, plan)).endpoint == receipt.endpoint == "127.0.0.1:4000"
    parts_s = phases.queue_s + phases.download_s + phases.load_s + phases.attach_s + phases.control_s
    assert phases.total_s == pytest.approx(parts_s)
    assert phases.load_s > 0 and phases.attach_s == 0, "the load hid the attach"
    assert held.stopped == []


@pytest.mark.parametrize("bound_ahead_s", [0.0, 0.05])
async def test_a_start_has_taken_until_it_could_serve(database: Database, bound_ahead_s: float) -> None:
    """Through an engine that the API had bound, requests go before the route is written."""
    held = HeldHost()
    held.bytes_may_end.set()
    held.bound_ahead_s = bound_ahead_s
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    plan = await placed(database, "tiny")
    async with database.transaction() as session:
        await lock_instance(session, plan.instance_id)
        async with bringing_up(database, held, plan) as running:
            await held.attached.wait()
            await asyncio.sleep(0.5)
            assert not running.done()
            await session.commit()
            phases = (await running).phases
    parts_s = phases.queue_s + phases.load_s + phases.free_s + phases.attach_s + phases.control_s
    assert phases.total_s == pytest.approx(parts_s)
    assert (phases.total_s < 0.5) == bool(bound_ahead_s)


async def test_bytes_that_fail_take_the_route_back_and_end_the_engine(database: Database) -> None:
    held = HeldHost()
    held.failure = ChecksumMismatch("chunk 3 differs")
    async with under_way(database, held) as (plan, running):
        held.bytes_may_end.set()
        with pytest.raises(ChecksumMismatch):
            await running
        found = await record(database, plan)
    assert (found.state, found.endpoint) == (InstanceState.STARTING, None)
    assert held.stopped == [plan.instance_id]
    async with database.session() as session:
        [event] = await list_audit(session, subject=f"checkpoint/{plan.checkpoint.checkpoint_id}")
    assert event.act == "checkpoint quarantined"


async def test_a_download_that_fails_is_the_reason_that_is_told(database: Database) -> None:
    held = HeldHost()
    held.fetch_failure = SourceUnreachable("the source is away")
    async with under_way(database, held, fetch=True) as (plan, running):
        held.bytes_may_end.set()
        with pytest.raises(SourceUnreachable):
            await running
        assert (await record(database, plan)).state is InstanceState.STARTING
    assert held.stopped == [plan.instance_id]


@pytest.mark.parametrize("full_pools", [0, 1])
async def test_an_engine_is_attached_only_once_the_gpu_is_its_own(
    database: Database, full_pools: int
) -> None:
    """Its bytes come meanwhile; if there is no room for them either, they come then."""
    held = HeldHost()
    held.bytes_may_end.set()
    held.full_pools = full_pools
    old = await one_host(database)
    plan = await placed(database, "new", ask_engines=says())
    assert plan.awaits_gpus
    async with bringing_up(database, held, plan) as running:
        async with asyncio.timeout(10):
            await held.is_loading.wait()
        await asyncio.wait({running}, timeout=0.2)
        assert not held.attached.is_set() and not running.done()
        await end(database, old)
        receipt = await running
    assert receipt.phases.free_s >= 0.15
    assert receipt.phases.control_s < receipt.phases.total_s - 0.15, "others' slowness is no overhead of ours"
    assert held.loads == full_pools + 1


async def test_a_start_that_is_given_up_while_it_waits_attaches_nothing(database: Database) -> None:
    held = HeldHost()
    held.bytes_may_end.set()
    await one_host(database)
    plan = await placed(database, "new", ask_engines=says())
    async with bringing_up(database, held, plan) as running:
        await abandon(database, plan)
        with pytest.raises(Exception) as failed:
            await running
    assert isinstance(failed.value, StaleEpoch)
    assert not held.attached.is_set()

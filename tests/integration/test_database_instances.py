"""An instance from its route to its end: fencing, draining, closing; and who is told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from fleets import DIGEST, add_host, add_model, placed, publish, running
from sqlalchemy import text

from firstlight.contracts.instances import BeginDrainInput, FinishInput
from firstlight.contracts.starts import AbandonInput
from firstlight.database import hosts_repository, instances_repository, models_repository, starts_repository
from firstlight.database.connection import (
    INSTANCE_CHANNEL,
    MODEL_CHANNEL,
    Database,
    Notification,
    Reconnected,
)
from firstlight.database.placements import write_placement
from firstlight.database.records import InstanceRecord
from firstlight.domain.errors import CheckpointMismatch, DatabaseUnavailable, StaleEpoch, UnknownInstance
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import InstanceState, PlacementState


async def read(database: Database, instance_id: str) -> InstanceRecord:
    async with database.session() as session:
        return await instances_repository.get_instance(session, instance_id)


async def test_publishing_makes_the_instance_ready_and_records_the_checkpoint(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    await publish(database, start)
    await publish(database, start)  # again: nothing changes, nothing fails
    record = await read(database, start.instance_id)
    assert record.state is InstanceState.READY and record.endpoint == f"127.0.0.1:{9000 + start.epoch}"
    assert record.gpu_indices == (0,) and record.ready_at_unix_s is not None
    async with database.session() as session:
        model = await models_repository.get_model(session, "tiny")
        [host] = await hosts_repository.list_hosts(session)
    assert (model.manifest_digest, model.size_bytes, model.size_is_exact) == (DIGEST, 1_100_000_000, True)
    assert {(row.checkpoint_id, row.tier) for row in host.placements} == {
        ("tiny@abcd1234", Tier.SSD),
        ("tiny@abcd1234", Tier.DRAM),
    }
    assert host.gpus[0].instance_id == start.instance_id and host.ssd_used_bytes == 1_100_000_000


@pytest.mark.parametrize("known", ["nothing", "ssd", "both", "another size", "quarantined"])
async def test_publishing_writes_what_nobody_has_written_of_where_the_bytes_lie(
    database: Database, known: str
) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    size, state = (5 if known == "another size" else 1_100_000_000), PlacementState.READY
    if known == "quarantined":
        state = PlacementState.QUARANTINED
    async with database.transaction() as session:
        for tier in () if known == "nothing" else (Tier.SSD,) if known == "ssd" else (Tier.SSD, Tier.DRAM):
            await write_placement(
                session,
                host_id="host-a",
                checkpoint_id="tiny@abcd1234",
                tier=tier,
                size_bytes=size,
                state=state,
            )
    await publish(database, start)
    async with database.session() as session:
        [host] = await hosts_repository.list_hosts(session)
    found = {(row.tier, row.state, row.size_bytes) for row in host.placements}
    assert found == {(tier, PlacementState.READY, 1_100_000_000) for tier in (Tier.SSD, Tier.DRAM)}


async def test_a_stale_epoch_neither_publishes_nor_ends(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    stale = replace(start, epoch=start.epoch - 1)
    with pytest.raises(StaleEpoch):
        await publish(database, stale)
    for act in (
        instances_repository.begin_drain,
        instances_repository.finish_instance,
    ):
        request = {
            instances_repository.begin_drain: BeginDrainInput(start.instance_id, stale.epoch, "idle"),
            instances_repository.finish_instance: FinishInput(
                start.instance_id, stale.epoch, "stopped", "idle"
            ),
        }[act]
        with pytest.raises(StaleEpoch):
            async with database.transaction() as session:
                await act(session, request)  # type: ignore[arg-type]
    async with database.transaction() as session:
        await starts_repository.abandon_start(session, AbandonInput(stale, "internal", "late"))
    assert (await read(database, start.instance_id)).state is InstanceState.READY


async def test_an_abandoned_start_cannot_publish_any_more(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    for _ in range(2):
        async with database.transaction() as session:
            await starts_repository.abandon_start(session, AbandonInput(start, "attach_failed", "no memory"))
    record = await read(database, start.instance_id)
    assert (record.state, record.failure_code, record.failure) == (
        InstanceState.FAILED,
        "attach_failed",
        "no memory",
    )
    with pytest.raises(StaleEpoch):
        await publish(database, start)


async def test_other_bytes_under_one_revision_are_refused_and_nothing_is_published(
    database: Database,
) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "tiny", max_instances=2)
    await running(database, "tiny")
    second = await placed(database, "tiny", may_wait=False)
    with pytest.raises(CheckpointMismatch):
        await publish(database, second, digest="f" * 64)
    assert (await read(database, second.instance_id)).state is InstanceState.STARTING


async def test_drain_and_finish_release_the_gpu_once(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    for _ in range(2):
        async with database.transaction() as session:
            request = BeginDrainInput(start.instance_id, start.epoch, "idle", respect_minimum=True)
            assert (await instances_repository.begin_drain(session, request)).draining
    for _ in range(2):
        async with database.transaction() as session:
            await instances_repository.finish_instance(
                session, FinishInput(start.instance_id, start.epoch, "stopped", "idle for 300 s")
            )
    record = await read(database, start.instance_id)
    assert record.state is InstanceState.STOPPED and record.end_reason == "idle for 300 s"
    assert record.gpu_indices == () and record.stopped_at_unix_s is not None
    async with database.transaction() as session:
        request = BeginDrainInput(start.instance_id, start.epoch, "idle")
        assert (await instances_repository.begin_drain(session, request)).state == "stopped"
    assert await placed(database, "tiny")


async def test_of_two_idle_instances_only_one_goes_when_one_is_the_minimum(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "tiny", min_instances=1, max_instances=2)
    starts = [await running(database, "tiny"), await running(database, "tiny", may_wait=False)]

    async def drain(instance_id: str, epoch: int) -> bool:
        async with database.transaction() as session:
            request = BeginDrainInput(instance_id, epoch, "idle", respect_minimum=True)
            return (await instances_repository.begin_drain(session, request)).draining

    drained = await asyncio.gather(*(drain(start.instance_id, start.epoch) for start in starts))
    assert sorted(drained) == [False, True]


async def test_an_unknown_instance_is_named(database: Database) -> None:
    with pytest.raises(UnknownInstance, match="i-none"):
        await read(database, "i-none")


async def test_instances_can_be_listed_by_state_and_model(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=3)
    for name in ("one", "two"):
        await add_model(database, name)
    ready, starting = await running(database, "one"), await placed(database, "two")
    async with database.session() as session:
        listed = await instances_repository.list_instances(session)
        only_ready = await instances_repository.list_instances(session, states=[InstanceState.READY])
        only_two = await instances_repository.list_instances(session, model="two")
    assert [row.instance_id for row in listed] == [starting.instance_id, ready.instance_id]
    assert [row.instance_id for row in only_ready] == [ready.instance_id]
    assert [row.instance_id for row in only_two] == [starting.instance_id]


async def test_of_those_that_have_ended_the_latest_are_told(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=4)
    await add_model(database, "one", max_instances=4)
    started = [await running(database, "one") for _ in range(4)]
    for start in started[:3]:
        finish = FinishInput(start.instance_id, start.epoch, "failed", "gone", "engine_gone")
        async with database.transaction() as session:
            await instances_repository.finish_instance(session, finish)

    async def told(ended: int, model: str | None = None) -> list[str]:
        async with database.session() as session:
            found = await instances_repository.list_live_and_ended(session, model=model, ended=ended)
        return [one.instance_id for one in found]

    oldest_first = [start.instance_id for start in started]
    assert await told(0) == oldest_first[3:]
    assert await told(2, "one") == oldest_first[:0:-1]
    assert await told(9) == oldest_first[::-1]
    assert await told(9, "two") == []


async def test_every_step_of_an_instance_and_a_model_is_notified(database: Database) -> None:
    events = database.listen(INSTANCE_CHANNEL, MODEL_CHANNEL)
    assert await anext(events) == Reconnected()
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    async with database.transaction() as session:
        await instances_repository.finish_instance(
            session, FinishInput(start.instance_id, start.epoch, "failed", "x" * 20_000, "engine_gone")
        )
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "tiny")
    async with database.transaction() as session:
        assert await models_repository.finish_delete(session, "tiny")
    told = [await asyncio.wait_for(anext(events), 5) for _ in range(6)]
    await events.aclose()  # type: ignore[attr-defined]
    assert all(isinstance(event, Notification) for event in told)
    payloads = [json.loads(event.payload) for event in told if isinstance(event, Notification)]
    assert [payload["state"] for payload in payloads] == [
        "active", "starting", "ready", "failed", "deleting", "deleted",
    ]  # fmt: skip
    ready = payloads[2]
    assert ready == {
        "instance_id": start.instance_id, "model": "tiny", "host_id": "host-a", "state": "ready",
        "endpoint": f"127.0.0.1:{9000 + start.epoch}", "epoch": start.epoch, "max_concurrency": 8,
        "failure_code": None, "failure": None,
    }  # fmt: skip
    assert payloads[3]["failure_code"] == "engine_gone" and len(payloads[3]["failure"]) == 1000


async def test_a_listener_comes_back_by_itself_and_says_so(database: Database) -> None:
    events = database.listen(INSTANCE_CHANNEL)
    assert await anext(events) == Reconnected()
    async with database.transaction() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'firstlight-listen' AND datname = current_database()"
            )
        )
    assert await asyncio.wait_for(anext(events), 10) == Reconnected()
    async with database.transaction() as session:
        await session.execute(text(f"NOTIFY {INSTANCE_CHANNEL}, 'again'"))
    assert await asyncio.wait_for(anext(events), 5) == Notification(INSTANCE_CHANNEL, "again")
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_database_that_is_away_is_an_error_of_ours_with_a_clear_sentence(tmp_path: object) -> None:
    away = Database(f"postgresql+psycopg://postgres@/none?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        await away.ping()
    await away.close()


async def test_a_connection_that_died_in_the_pool_is_replaced(database: Database) -> None:
    await database.ping()
    async with database.transaction() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    await asyncio.gather(*(database.ping() for _ in range(5)))

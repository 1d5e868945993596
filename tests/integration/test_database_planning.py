"""Handing out GPUs: no GPU twice, one start per model, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest
from fleets import add_host, add_model, placed, plan, publish, running
from sqlalchemy import text

from firstlight.contracts.hosts import FailHostInput
from firstlight.contracts.starts import ReplanInput
from firstlight.database import hosts_repository, instances_repository, models_repository, starts_repository
from firstlight.database.connection import Database
from firstlight.domain.errors import ModelBeingDeleted, UnknownModel
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import InstanceState
from firstlight.domain.names import HostId
from firstlight.domain.scheduler import Place, Reject, Wait


async def test_fifty_models_at_once_over_six_gpus_place_six_and_no_gpu_twice(database: Database) -> None:
    for host in ("host-a", "host-b", "host-c"):
        await add_host(database, host, gpu_count=2)
    names = [f"model-{number}" for number in range(50)]
    for name in names:
        await add_model(database, name)
    planned = await asyncio.gather(*(plan(database, name) for name in names))
    plans = [answer.plan for answer in planned if answer.plan is not None]
    gpus = Counter((start.host_id, index) for start in plans for index in start.gpu_indices)
    assert len(gpus) == 6 and set(gpus.values()) == {1}
    assert len({start.epoch for start in plans}) == 6
    assert all(isinstance(answer.decision, Wait | Reject) for answer in planned if answer.plan is None)
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM reservations")) == 6
        # Nothing of an attempt that lost its GPUs was kept.
        assert await session.scalar(text("SELECT count(*) FROM instances")) == 6
        assert await session.scalar(text("SELECT count(*) FROM decisions")) == 50


async def test_the_same_model_twenty_times_at_once_is_started_once(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=4)
    await add_model(database, "tiny", max_instances=4)
    answers = await asyncio.gather(*(plan(database, "tiny") for _ in range(20)))
    places = [answer for answer in answers if isinstance(answer.decision, Place)]
    waits = [answer.decision for answer in answers if isinstance(answer.decision, Wait)]
    assert len(places) == 1 and len(waits) == 19
    assert places[0].plan is not None
    assert {wait.instance_id for wait in waits} == {places[0].plan.instance_id}


async def test_a_decision_keeps_all_candidates_and_the_plan_carries_the_estimate(database: Database) -> None:
    await add_host(database, "host-a")
    await add_host(database, "host-b")
    await add_model(database, "tiny")
    async with database.transaction() as session:
        await hosts_repository.set_placements(
            session, host_id="host-b", checkpoint_id="tiny@abcd1234", ssd=True, dram=False,
            size_bytes=1_000_000_000, manifest_digest="e" * 64,
        )  # fmt: skip
    planned = await plan(database, "tiny")
    assert planned.plan is not None
    assert planned.plan.host_id == "host-b", "the checkpoint is near only there"
    assert planned.plan.estimate.tier == Tier.SSD
    assert planned.plan.estimate.load_s == pytest.approx(1.01)
    assert planned.plan.checkpoint.manifest_digest == "e" * 64
    table = planned.candidates_markdown.replace("\u00a0\u00a0", " ")
    assert "host-b | ssd" in table and "host-a | remote" in table
    async with database.session() as session:
        [record] = await starts_repository.list_starts(session)
    assert record.candidates == planned.decision.candidates
    assert record.predicted == planned.plan.estimate


async def test_a_maximum_is_respected(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=4)
    await add_model(database, "one", max_instances=1)
    await add_model(database, "none", max_instances=0)
    await add_model(database, "two", max_instances=2)
    start = await running(database, "one")
    decision = (await plan(database, "one")).decision
    assert isinstance(decision, Wait) and decision.instance_id == start.instance_id
    assert isinstance((await plan(database, "none")).decision, Reject)
    await running(database, "two")
    await running(database, "two")
    assert isinstance((await plan(database, "two")).decision, Wait)


async def test_a_second_start_of_a_model_that_may_not_wait_takes_another_gpu(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "tiny", max_instances=2)
    first, second = await placed(database, "tiny"), await placed(database, "tiny", may_wait=False)
    assert first.instance_id != second.instance_id and first.gpu_indices != second.gpu_indices
    assert isinstance((await plan(database, "tiny", may_wait=False)).decision, Reject)


async def test_a_start_under_way_is_ready_sooner_as_time_passes_and_queues_the_next(
    database: Database,
) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "first")
    await add_model(database, "second")
    start = await placed(database, "first")
    wait = (await plan(database, "first")).decision
    assert isinstance(wait, Wait) and wait.ready_in_s is not None
    assert wait.ready_in_s == pytest.approx(start.estimate.total_s, abs=2.0)
    second = await placed(database, "second")
    # 1 GB over the prior link of 100 MB/s is still ahead of it, and lands in DRAM as it comes.
    assert second.estimate.queue_s == pytest.approx(10, abs=1)
    async with database.transaction() as session:
        await session.execute(text("UPDATE instances SET planned_at = planned_at - interval '8 s'"))
    later = (await plan(database, "first")).decision
    assert isinstance(later, Wait) and later.ready_in_s is not None
    assert later.ready_in_s == pytest.approx(wait.ready_in_s - 8, abs=2.0)


async def test_busy_gpus_come_back_after_the_keep_alive_time_unless_the_model_has_a_minimum(
    database: Database,
) -> None:
    await add_host(database, "host-a")
    await add_model(database, "kept", keep_alive_s=12.0)
    await add_model(database, "other")
    await running(database, "kept")
    decision = (await plan(database, "other")).decision
    assert isinstance(decision, Wait) and decision.ready_in_s == 12.0 and decision.instance_id is None
    async with database.transaction() as session:
        await models_repository.scale_model(session, "kept", min_instances=1)
    assert isinstance((await plan(database, "other")).decision, Reject)


async def test_a_host_whose_lease_ran_out_takes_no_plan(database: Database) -> None:
    await add_host(database, "host-a", lease_s=-1.0)
    await add_model(database, "tiny")
    decision = (await plan(database, "tiny")).decision
    assert isinstance(decision, Reject) and "host is lost" in decision.reason


async def test_unknown_and_deleting_models_are_refused(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "tiny")
    with pytest.raises(ModelBeingDeleted):
        await plan(database, "tiny")
    with pytest.raises(UnknownModel):
        await plan(database, "nothing")


async def test_a_failed_plan_moves_to_another_host_once(database: Database) -> None:
    await add_host(database, "host-a")
    await add_host(database, "host-b")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    request = ReplanInput(plan=start, failed_hosts=[start.host_id], failure="no answer")
    receipts = await asyncio.gather(
        *(starts_repository.replan_start(database, request, now_unix_s=time.time()) for _ in range(5))
    )
    plans = [receipt.plan for receipt in receipts]
    assert plans[0] is not None
    # Asked five times at once, it was done once and told five times; only the caller's clock differs.
    assert [replace(plan, decided_at_unix_s=0.0) for plan in plans if plan] == [
        replace(plans[0], decided_at_unix_s=0.0)
    ] * 5
    again = plans[0]
    assert again.host_id != start.host_id and again.epoch > start.epoch
    assert again.instance_id == start.instance_id
    async with database.session() as session:
        record = await instances_repository.get_instance(session, start.instance_id)
    assert (record.host_id, record.epoch, record.state) == (
        again.host_id,
        again.epoch,
        InstanceState.STARTING,
    )
    other = await add_model(database, "other")
    assert (await placed(database, other.name)).host_id == start.host_id, "its GPU was released"


async def test_a_failed_plan_without_another_host_fails_the_instance(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    request = ReplanInput(plan=start, failed_hosts=["host-a"], failure="attach failed")
    receipt = await starts_repository.replan_start(database, request, now_unix_s=time.time())
    assert receipt.plan is None and "attach failed" in receipt.reason
    async with database.session() as session:
        record = await instances_repository.get_instance(session, start.instance_id)
    assert record.state is InstanceState.FAILED and record.failure_code == "start_failed"
    assert record.gpu_indices == ()
    assert await placed(database, "tiny"), "the GPU is free again"


async def test_a_host_lost_in_the_middle_of_a_start_is_planned_around(database: Database) -> None:
    registration = await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    await add_host(database, "host-b")
    async with database.transaction() as session:
        receipt = await hosts_repository.fail_host(session, FailHostInput("host-a", registration, "silent"))
    assert receipt.marked and receipt.failed_instances == []
    request = ReplanInput(plan=start, failed_hosts=[], failure="host-a does not answer")
    again = (await starts_repository.replan_start(database, request, now_unix_s=time.time())).plan
    assert again is not None and again.host_id == "host-b"
    await publish(database, again)


async def test_a_delete_in_the_middle_of_a_start_ends_it(database: Database) -> None:
    await add_host(database, "host-a")
    await add_host(database, "host-b")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    async with database.transaction() as session:
        live = await models_repository.begin_delete(session, "tiny")
    assert [record.instance_id for record in live] == [start.instance_id]
    with pytest.raises(ModelBeingDeleted):
        await publish(database, start)
    async with database.transaction() as session:
        assert not await models_repository.finish_delete(session, "tiny")
    request = ReplanInput(plan=start, failed_hosts=["host-a"], failure="refused")
    assert (await starts_repository.replan_start(database, request, now_unix_s=time.time())).plan is None
    async with database.transaction() as session:
        assert await models_repository.finish_delete(session, "tiny")
    async with database.session() as session:
        assert (
            await instances_repository.get_instance(session, start.instance_id)
        ).state is InstanceState.STOPPED


async def test_deletes_and_plans_at_once_leave_no_instance_behind(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=8)
    for number in range(8):
        await add_model(database, f"model-{number}")

    async def deleted(name: str) -> set[str]:
        async with database.transaction() as session:
            return {record.instance_id for record in await models_repository.begin_delete(session, name)}

    async def started(name: str) -> set[str]:
        try:
            planned = (await plan(database, name)).plan
        except ModelBeingDeleted:
            return set()
        return {planned.instance_id} if planned else set()

    for number in range(8):
        name = f"model-{number}"
        begun, seen = await asyncio.gather(started(name), deleted(name))
        assert begun == seen, "whoever deletes is told of every start that was planned before"


async def test_excluded_hosts_are_left_out(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    decision = (await plan(database, "tiny", excluded_hosts=frozenset({HostId("host-a")}))).decision
    assert isinstance(decision, Reject)

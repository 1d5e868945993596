"""Every act of the control plane at once, at random: no impossible row, no GPU left behind, no raw error."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import pytest
from fleets import add_host, placed, publish, spec
from sqlalchemy import text

from firstlight.contracts.hosts import EngineRow, FailHostInput, HostReport, MendInput
from firstlight.contracts.instances import BeginDrainInput, FinishInput
from firstlight.contracts.progress import StartProgress
from firstlight.contracts.starts import AbandonInput, PhaseSeconds, RecordStartInput, ReplanInput, StartPlan
from firstlight.database import (
    hosts_repository,
    housekeeping,
    instances_repository,
    models_repository,
    starts_repository,
)
from firstlight.database.connection import Database
from firstlight.database.progress_news import tell_progress
from firstlight.domain.errors import Conflict, DatabaseUnavailable, NotFound
from firstlight.domain.lifecycle import InstanceState

HOSTS = ("host-a", "host-b", "host-c")
MODELS = tuple(f"model-{number}" for number in range(5))


@dataclass(slots=True)
class Fleet:
    database: Database
    random: random.Random
    registrations: dict[str, int] = field(default_factory=dict)
    plans: list[StartPlan] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def plan(self) -> StartPlan | None:
        # Mostly one that still matters.
        return self.random.choice(self.plans[-8:]) if self.plans else None

    def keep(self, plan: StartPlan | None) -> None:
        if plan is not None:
            self.plans.append(plan)
            self.epochs.append(plan.epoch)


async def start(fleet: Fleet) -> None:
    planned = await starts_repository.plan_start(
        fleet.database, model=fleet.random.choice(MODELS), deadline_s=None,
        may_wait=fleet.random.random() < 0.5, request_id="chaos", now_unix_s=time.time(),
    )  # fmt: skip
    fleet.keep(planned.plan)


async def replan(fleet: Fleet) -> None:
    if (plan := fleet.plan()) is not None:
        request = ReplanInput(plan=plan, failed_hosts=[plan.host_id], failure="chaos")
        fleet.plans.extend(
            again
            for again in [
                (await starts_repository.replan_start(fleet.database, request, now_unix_s=time.time())).plan
            ]
            if again is not None
        )


async def publish_one(fleet: Fleet) -> None:
    if (plan := fleet.plan()) is not None:
        await publish(fleet.database, plan)
        async with fleet.database.transaction() as session:
            phases = PhaseSeconds(load_s=1.0, attach_s=0.1, total_s=1.1, tier="ssd")
            await starts_repository.record_start(session, RecordStartInput(plan, phases))


async def tell(fleet: Fleet) -> None:
    if (plan := fleet.plan()) is not None:
        word = StartProgress(instance_id=plan.instance_id, epoch=plan.epoch, phase="load", phase_s=1.0)
        async with fleet.database.transaction() as session:
            await tell_progress(session, [word])


async def abandon(fleet: Fleet) -> None:
    if (plan := fleet.plan()) is not None:
        async with fleet.database.transaction() as session:
            await starts_repository.abandon_start(session, AbandonInput(plan, "internal", "chaos"))


async def drain(fleet: Fleet) -> None:
    if (plan := fleet.plan()) is not None:
        async with fleet.database.transaction() as session:
            request = BeginDrainInput(plan.instance_id, plan.epoch, "chaos", respect_minimum=True)
            await instances_repository.begin_drain(session, request)


async def finish(fleet: Fleet) -> None:
    if (plan := fleet.plan()) is not None:
        outcome = fleet.random.choice(["stopped", "failed"])
        async with fleet.database.transaction() as session:
            await instances_repository.finish_instance(
                session, FinishInput(plan.instance_id, plan.epoch, outcome, "chaos", "internal")
            )


async def lose_host(fleet: Fleet) -> None:
    host = fleet.random.choice(HOSTS)
    async with fleet.database.transaction() as session:
        await hosts_repository.fail_host(session, FailHostInput(host, fleet.registrations[host], "chaos"))


async def register(fleet: Fleet) -> None:
    host = fleet.random.choice(HOSTS)
    fleet.registrations[host] = await add_host(fleet.database, host, gpu_count=fleet.random.choice([1, 2]))


async def mend(fleet: Fleet) -> None:
    host = fleet.random.choice(HOSTS)
    engines = [
        EngineRow(plan.instance_id, plan.epoch, "serving", "127.0.0.1:9000")
        for plan in fleet.plans
        if plan.host_id == host and fleet.random.random() < 0.8
    ]
    async with fleet.database.transaction() as session:
        await hosts_repository.mend_host(
            session, MendInput(HostReport(host, [], engines), 0.0), abandoned_starts=frozenset()
        )


async def create(fleet: Fleet) -> None:
    async with fleet.database.transaction() as session:
        await models_repository.create_model(session, spec(fleet.random.choice(MODELS), max_instances=2))


async def delete(fleet: Fleet) -> None:
    name = fleet.random.choice(MODELS)
    async with fleet.database.transaction() as session:
        await models_repository.begin_delete(session, name)
    async with fleet.database.transaction() as session:
        await models_repository.finish_delete(session, name)


WEIGHTS = {
    start: 8, publish_one: 4, replan: 2, abandon: 1, drain: 2, finish: 3, lose_host: 1, register: 3, mend: 1,
    create: 4, delete: 1, tell: 4,
}  # fmt: skip


@pytest.mark.parametrize("seed", [1, 20, 300])
async def test_whatever_happens_at_once_no_row_is_impossible_and_nothing_is_left(
    database: Database, seed: int
) -> None:
    print(f"seed {seed}")
    fleet = Fleet(database, random.Random(seed))
    for host in HOSTS:
        fleet.registrations[host] = await add_host(database, host, gpu_count=2)
    for _ in range(20):
        await create(fleet)

    dead_locks: list[str] = []

    async def actor() -> None:
        for _ in range(60):
            try:
                await fleet.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0](fleet)
            # What a caller may be told. A constraint that had to step in would be a StorageError, and fail.
            except (Conflict, NotFound):
                continue
            except DatabaseUnavailable as error:
                assert "deadlock" in error.message, error.message
                dead_locks.append(error.message)

    await asyncio.gather(*(actor() for _ in range(8)))
    assert not dead_locks, "every transaction takes its locks in one order"
    assert len(fleet.plans) > 20, "the chaos did something"
    assert len(fleet.epochs) == len(set(fleet.epochs))
    await check_rows(database)
    await end_all(database)
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM reservations")) == 0
    for host in HOSTS:
        await add_host(database, host, gpu_count=2)
    await create_all(database)
    for name in MODELS:
        assert await placed(database, name), "every GPU can be had again"


async def check_rows(database: Database) -> None:
    """Live instances hold exactly their GPUs, on their host, under their epoch; no one else holds any."""
    async with database.session() as session:
        wrong = await session.scalar(
            text(
                "SELECT count(*) FROM instances i LEFT JOIN reservations r USING (instance_id) "
                "WHERE (i.state IN ('starting', 'ready', 'draining')) <> (r.instance_id IS NOT NULL) "
                "OR r.host_id <> i.host_id OR r.epoch <> i.epoch"
            )
        )
    assert wrong == 0


async def end_all(database: Database) -> None:
    async with database.session() as session:
        live = await instances_repository.list_instances(
            session, states=[InstanceState.STARTING, InstanceState.READY, InstanceState.DRAINING]
        )
    for record in live:
        async with database.transaction() as session:
            await instances_repository.finish_instance(
                session, FinishInput(record.instance_id, record.epoch, "stopped", "the end")
            )


async def create_all(database: Database) -> None:
    for name in MODELS:
        async with database.transaction() as session:
            await housekeeping.finish_deletes(session)
        async with database.transaction() as session:
            await models_repository.create_model(session, spec(name, max_instances=2))

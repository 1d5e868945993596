"""Instances that give way, in Postgres: fleets in which somebody holds what another one needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firstlight.contracts.instances import BeginDrainInput, FinishInput
from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.contracts.starts import AbandonInput, StartPlan
from firstlight.database import hosts_repository, instances_repository, starts_repository
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.start_planning import AskEngines
from tests.integration.fleets import add_host, add_model, running

LONG_IDLE_S = 60.0
Loads = Mapping[str, EngineLoad | None]


async def has_load(database: Database, start: StartPlan, *, requests: int = 0, tokens: int = 0) -> None:
    idle_s = None if requests else LONG_IDLE_S
    load = EngineLoad(instance_id=start.instance_id, requests=requests, tokens=tokens, idle_s=idle_s)
    async with database.transaction() as session:
        await write_loads(session, [load])


def says(**changes: EngineLoad | None) -> AskEngines:
    """Engines that say they are idle, but for those named."""

    async def ask(victims: Sequence[MovingInstance]) -> Loads:
        idle = {
            one.instance_id: EngineLoad(instance_id=one.instance_id, requests=0, tokens=0, idle_s=LONG_IDLE_S)
            for one in victims
        }
        return {**idle, **changes}

    return ask


def is_busy(instance_id: str, *, requests: int = 1, tokens: int = 500) -> EngineLoad:
    return EngineLoad(instance_id=instance_id, requests=requests, tokens=tokens, idle_s=None)


async def end(database: Database, start: StartPlan) -> None:
    async with database.transaction() as session:
        await instances_repository.begin_drain(
            session, BeginDrainInput(start.instance_id, start.epoch, "it made room")
        )
    async with database.transaction() as session:
        await instances_repository.finish_instance(
            session, FinishInput(start.instance_id, start.epoch, "stopped", "it made room")
        )


async def abandon(database: Database, start: StartPlan) -> None:
    async with database.transaction() as session:
        await starts_repository.abandon_start(session, AbandonInput(start, "start_failed", "test"))


async def one_host(database: Database) -> StartPlan:
    """A host of one GPU, which an idle instance of `old` holds; `new` and `other` are deployed."""
    await add_host(database, "host-a")
    for name in ("old", "new", "other"):
        await add_model(database, name)
    old = await running(database, "old")
    await has_load(database, old)
    return old


async def two_hosts(database: Database) -> StartPlan:
    """host-a holds the bytes of both models and is taken by a busy `old`; host-b is free and has `old`'s."""
    await add_host(database, "host-a")
    await add_model(database, "old")
    await add_model(database, "new")
    old = await running(database, "old")
    await has_load(database, old, requests=2, tokens=700)
    await add_host(database, "host-b")
    for host_id, checkpoint in (("host-a", "new"), ("host-b", "old")):
        async with database.transaction() as session:
            await hosts_repository.set_placements(
                session,
                host_id=host_id,
                checkpoint_id=f"{checkpoint}@abcd1234",
                ssd=True,
                dram=None,
                size_bytes=1_100_000_000,
                manifest_digest="d" * 64,
            )
    return old

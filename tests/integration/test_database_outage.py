"""Postgres killed in the middle of decisions: clear errors, whole rows, and on again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio
from fleets import add_host, add_model, plan
from sqlalchemy import text

from firstlight.contracts.instances import FinishInput
from firstlight.database import instances_repository, schema
from firstlight.database.connection import INSTANCE_CHANNEL, Database, Reconnected
from firstlight.domain.errors import DatabaseUnavailable
from firstlight.launcher.embedded.postgres import EmbeddedPostgres

MODELS = tuple(f"model-{number}" for number in range(4))


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server of this test alone, for it to kill."""
    server = EmbeddedPostgres(tmp_path)
    yield server
    await asyncio.to_thread(server.stop)


async def test_decisions_go_through_or_not_at_all_while_the_server_is_killed(
    server: EmbeddedPostgres,
) -> None:
    url = await asyncio.to_thread(server.start)
    await asyncio.to_thread(schema.upgrade, url)
    database = Database(url)
    await add_host(database, "host-a", gpu_count=2)
    for name in MODELS:
        await add_model(database, name)
    refusals: list[DatabaseUnavailable] = []
    done: list[str] = []
    over = asyncio.Event()

    async def plan_and_finish(name: str) -> None:
        while not over.is_set():
            try:
                start = (await plan(database, name)).plan
                if start is not None:
                    async with database.transaction() as session:
                        await instances_repository.finish_instance(
                            session, FinishInput(start.instance_id, start.epoch, "stopped", "test")
                        )
                done.append(name)
            except DatabaseUnavailable as error:
                refusals.append(error)
            await asyncio.sleep(0)

    events = database.listen(INSTANCE_CHANNEL)
    assert await anext(events) == Reconnected()
    workers = [asyncio.create_task(plan_and_finish(name)) for name in MODELS]
    for _ in range(2):
        await until(lambda: len(done) > 20)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: len(refusals) > 0)
        await asyncio.to_thread(server.start)
        done.clear()
        refusals.clear()
    await until(lambda: len(done) > 20)
    over.set()
    await asyncio.gather(*workers)
    async with asyncio.timeout(20):
        assert any([event == Reconnected() async for event in _until_reconnected(events)])
    async with database.session() as session:
        halves = await session.scalar(
            text(
                "SELECT count(*) FROM instances i LEFT JOIN reservations r USING (instance_id) "
                "WHERE i.is_live <> (r.instance_id IS NOT NULL) "
                "OR NOT EXISTS (SELECT FROM decisions d WHERE d.decision_id = i.decision_id)"
            )
        )
    assert halves == 0
    await database.close()


async def _until_reconnected(events: AsyncIterator[object]) -> AsyncIterator[object]:
    async for event in events:
        yield event
        if event == Reconnected():
            return


async def until(holds: Callable[[], bool], *, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  nothing tells when it comes true
            await asyncio.sleep(0.01)

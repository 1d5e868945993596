"""What goes on, as viewers of the console hear of it: from the activities, over Postgres, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from api_stand import Stand, stand, until
from console_watching import Watching, watching
from fake_engine import FakeEngine, hashed
from fleets import add_host, add_model, placed
from held_host import HeldHost, bringing_up
from sqlalchemy import make_url, text
from temporalio.testing import ActivityEnvironment

from activities import telling
from activities.heartbeat import beating
from activities.moving import move_requests
from activities.telling import Teller
from api.console import producer as producing
from firstlight.contracts.migrations import FinishMigrationInput, MoveInput, MoveReceipt, MovingInstance
from firstlight.contracts.progress import StartProgress
from firstlight.contracts.starts import RecordStartInput
from firstlight.database.connection import Database, Notification
from firstlight.database.migrations_repository import finish_migration, plan_migration
from firstlight.database.progress_news import PROGRESS_CHANNEL, parse_progress, tell_progress
from firstlight.database.starts_repository import record_start
from firstlight.rpc import engine_pb2, host_pb2, store_pb2
from firstlight.rpc.channels import Channels
from firstlight.rpc.status import answering


@pytest.fixture(autouse=True)
def in_quick_succession(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_EVERY_S", "FIRST_AFTER_S", "AGAIN_AFTER_S"):
        monkeypatch.setattr(telling, name, 0.02)
    monkeypatch.setattr(producing, "LOOK_EVERY_S", 0.02)


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path) as made:
        yield made


# Any: servicer contexts are generic in messages that nobody names here.
class ToldHost(HeldHost):
    """Says of its bytes what the test does, and attaches when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: asyncio.Queue[store_pb2.DownloadProgress] = asyncio.Queue()
        self.loaded: asyncio.Queue[store_pb2.LoadProgress] = asyncio.Queue()
        self.may_attach = asyncio.Event()

    async def Download(self, request: Any, context: Any) -> AsyncIterator[store_pb2.DownloadProgress]:
        while True:
            yield await self.fetched.get()

    async def Load(self, request: Any, context: Any) -> AsyncIterator[store_pb2.LoadProgress]:
        while True:
            message = await self.loaded.get()
            yield message
            if message.done:
                return

    async def Attach(self, request: Any, context: Any) -> host_pb2.AttachReply:
        await self.may_attach.wait()
        return await super().Attach(request, context)


def load(bytes_done: int, tier: str, since_unix_s: float, *, queue_s: float = 0.0) -> store_pb2.LoadProgress:
    return store_pb2.LoadProgress(
        bytes_done=bytes_done,
        bytes_total=1000,
        queue_s=queue_s,
        elapsed_s=time.time() - since_unix_s,
        from_tier=tier,
        moving_at_unix_s=since_unix_s,
        done=bytes_done == 1000,
    )


async def sees(seen: Watching, instance_id: str, phase: str, bytes_done: int = 0) -> dict[str, Any]:
    """What is told of the start, once it is in that phase and so far."""

    def told(at: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = at["progress"]["starts"].get(instance_id, {})
        return found

    def is_there(at: dict[str, Any]) -> bool:
        return (told(at).get("phase"), told(at).get("bytes_done")) == (phase, bytes_done)

    await seen.sees(is_there)
    return told(seen.sections)


def in_order(seen: Watching, instance_id: str) -> list[tuple[str, int]]:
    """Every (phase, bytes) that was shown, without repetitions."""
    shown = [
        (value["starts"][instance_id]["phase"], value["starts"][instance_id]["bytes_done"])
        for name, value in seen.history
        if name == "progress" and instance_id in value["starts"]
    ]
    return [one for index, one in enumerate(shown) if index == 0 or one != shown[index - 1]]


async def test_a_running_start_shows_its_phases_and_bytes_and_ends_with_the_figures(api: Stand) -> None:
    await api.deploy("tiny")
    plan = await placed(api.database, "tiny")
    held, about = ToldHost(), plan.instance_id
    async with watching(api) as seen, bringing_up(api.database, held, plan) as running:
        queued = await sees(seen, about, "queue")
        assert (queued["epoch"], queued["bytes_total"], queued["done"]) == (plan.epoch, 0, {})
        began = time.time() - 0.2
        held.loaded.put_nowait(load(0, "ssd", began, queue_s=0.7))
        loading = await sees(seen, about, "load")
        assert (loading["bytes_total"], loading["done"]) == (1000, {"queue": 0.7})
        assert loading["since_unix_s"] == pytest.approx(began, abs=5)
        [row] = [
            one for one in (await api.http.get("/admin/v1/instances")).json()["instances"] if one["progress"]
        ]
        assert (row["state"], row["progress"]["phase"]) == ("starting", "load")
        held.loaded.put_nowait(load(400, "ssd", began, queue_s=0.7))
        await sees(seen, about, "load", 400)
        held.loaded.put_nowait(load(1000, "ssd", began, queue_s=0.7))
        attaching = await sees(seen, about, "attach")
        assert attaching["done"]["load"] >= 0.2 and attaching["done"]["queue"] == 0.7
        held.may_attach.set()
        phases = (await running).phases
        # What was told is what was measured.
        assert attaching["done"] == pytest.approx({"queue": phases.queue_s, "load": phases.load_s})
        async with api.database.transaction() as session:
            await record_start(session, RecordStartInput(plan=plan, phases=phases))
        await seen.sees(lambda at: at["starts"][0]["actual"])
        assert seen.sections["starts"][0]["actual"]["total_s"] == pytest.approx(phases.total_s)
        # Whether anybody looks between the last byte and the end of its load is chance, as after the attach.
        passing = {("load", 1000), ("control", 0)}
        assert [one for one in in_order(seen, about) if one not in passing] == [
            ("queue", 0),
            ("load", 0),
            ("load", 400),
            ("attach", 0),
        ]


async def test_a_download_is_told_until_its_last_byte_is_there(api: Stand) -> None:
    await api.deploy("tiny")
    plan = await placed(api.database, "tiny")
    held, about = ToldHost(), plan.instance_id
    held.may_attach.set()
    async with watching(api) as seen, bringing_up(api.database, held, plan, fetch=True) as running:
        await sees(seen, about, "download")
        held.fetched.put_nowait(store_pb2.DownloadProgress(phase="fetch", bytes_done=300, bytes_total=900))
        assert (await sees(seen, about, "download", 300))["bytes_total"] == 900
        # From here on it lands in DRAM, where an engine serves with what has come.
        began = time.time()
        held.loaded.put_nowait(load(500, "remote", began))
        assert (await sees(seen, about, "download", 500))["bytes_total"] == 1000
        await seen.sees(lambda at: at["starts"][0]["state"] == "ready")
        held.loaded.put_nowait(load(1000, "remote", began))
        assert (await running).phases.download_s > 0
        assert {phase for phase, _ in in_order(seen, about)} <= {"download", "control"}


async def test_a_stale_epoch_says_nothing(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    plan = await placed(database, "tiny")
    word = StartProgress(instance_id=plan.instance_id, epoch=plan.epoch, phase="load", phase_s=1.0)
    heard: list[str] = []
    is_listening = asyncio.Event()

    async def listen() -> None:
        async for item in database.listen(PROGRESS_CHANNEL):
            is_listening.set()
            if isinstance(item, Notification):
                heard.append(item.payload)

    listening = asyncio.create_task(listen())
    try:
        await is_listening.wait()
        for epoch in (plan.epoch - 1, plan.epoch + 1, plan.epoch):
            async with database.transaction() as session:
                await tell_progress(session, [replace(word, epoch=epoch)])
        # They come in the order of their commits: before this one there was none.
        await until(lambda: heard)
        assert [parse_progress(payload) for payload in heard] == [word]
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_word_of_another_release_ends_nothing(api: Stand) -> None:
    await api.deploy("tiny")
    plan = await placed(api.database, "tiny")
    async with api.database.transaction() as session:
        for payload in ("no json", "[]", "{}", '{"kind": "other"}', '{"kind": "start", "epoch": 1}'):
            await session.execute(
                text("SELECT pg_notify(:channel, :payload)"),
                {"channel": PROGRESS_CHANNEL, "payload": payload},
            )
        word = StartProgress(instance_id=plan.instance_id, epoch=plan.epoch, phase="load", phase_s=1.0)
        await tell_progress(session, [word])
    await until(lambda: api.services.progress.start_of(plan.instance_id, plan.epoch) == word)


@asynccontextmanager
async def silent_postgres(url: str) -> AsyncIterator[tuple[Database, asyncio.Event]]:
    """A server that takes connections and never says a word; the event: it was asked."""
    is_asked = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = make_url(url).set(host="127.0.0.1", port=port, query={})
    silent = Database(there.render_as_string(hide_password=False))
    try:
        yield silent, is_asked
    finally:
        server.close()
        await silent.close()


async def test_no_start_waits_for_its_words(database: Database, database_url: str) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    plan = await placed(database, "tiny")
    held = ToldHost()
    held.may_attach.set()
    async with (
        silent_postgres(database_url) as (silent, is_asked),
        bringing_up(database, held, plan, told=silent) as running,
    ):
        async with asyncio.timeout(20):
            await is_asked.wait()
            began_s = time.monotonic()
            held.loaded.put_nowait(load(1000, "ssd", time.time()))
            await running
        # It would have to wait for the connection's own time-out.
        assert time.monotonic() - began_s < 4


class MovingEngine(FakeEngine):
    """Tells of a migration what the test does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: asyncio.Queue[engine_pb2.MigrationEvent | None] = asyncio.Queue()

    async def MigrateOut(self, request: Any, context: Any) -> AsyncIterator[engine_pb2.MigrationEvent]:
        async with answering(context):
            while (event := await self.events.get()) is not None:
                yield event


async def test_a_running_move_shows_its_rounds_and_tokens(api: Stand) -> None:
    await api.deploy("tiny")
    plan = await placed(api.database, "tiny")
    engine = await MovingEngine(plan.instance_id, plan.epoch, hashed(100)).start()
    await api.run(plan)
    planned = await plan_migration(
        api.database, instance_id=plan.instance_id, to_host=None, reason="test", now_unix_s=time.time()
    )
    assert planned.destination is not None
    there = planned.destination
    order = MoveInput(
        migration_id=planned.migration_id,
        source=replace(planned.source, endpoint=engine.endpoint),
        destination=MovingInstance(there.instance_id, there.epoch, there.host_id, "127.0.0.1:9"),
        transfer="exact",
        delta_tokens=16,
    )
    teller = Teller(api.database)
    async with Channels() as channels, watching(api) as seen:

        async def run() -> MoveReceipt:
            async with beating("move") as heart:
                return await move_requests(channels, order, heart, teller)

        def told(at: dict[str, Any]) -> tuple[int, ...]:
            one = at["progress"]["migrations"].get(order.migration_id, {})
            return tuple(one.get(name, -1) for name in ("rounds", "tokens", "moved", "left"))

        moving = asyncio.ensure_future(ActivityEnvironment().run(run))
        for name, number in (("one", 1), ("two", 1), ("one", 2)):
            engine.events.put_nowait(
                engine_pb2.MigrationEvent(kind="round", request_id=name, round=number, tokens=50, left=2)
            )
        await seen.sees(lambda at: told(at) == (2, 150, 0, 2))
        engine.events.put_nowait(engine_pb2.MigrationEvent(kind="handed_over", request_id="one", left=1))
        await seen.sees(lambda at: told(at) == (2, 150, 1, 1))
        engine.events.put_nowait(engine_pb2.MigrationEvent(kind="handed_over", request_id="two", left=0))
        engine.events.put_nowait(None)
        receipt = await moving
        async with api.database.transaction() as session:
            await finish_migration(
                session, FinishMigrationInput(planned.migration_id, "completed", move=receipt)
            )
        await seen.sees(lambda at: at["migrations"][0]["state"] == "completed")
        last = seen.sections["migrations"][0]
        assert (last["rounds"], last["tokens_moved"], last["requests_moved"]) == (2, 150, 2)
    await engine.stop()

"""Cold starts through the API: real Postgres, real Temporal, real workflows, hosts by contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from api_model import CONTEXT, ids_of
from api_stand import Stand, stand, until
from fake_engine import scripted
from fake_host import FakeHost, working_cluster
from sqlalchemy import text

from api.openai.signs_of_life import Patience
from firstlight.database.connection import Database
from firstlight.database.starts_repository import list_starts
from firstlight.launcher.embedded.temporal import EmbeddedTemporal

MODEL = "cold"
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal) -> AsyncIterator[Stand]:
    patience = Patience(first_sign_s=0.2, every_s=0.2)
    async with stand(
        database, tmp_path, temporal_address=temporal_server.address, patience=patience, start_timeout_s=30
    ) as made:
        yield made


@pytest_asyncio.fixture
async def host(api: Stand, temporal_server: EmbeddedTemporal) -> AsyncIterator[FakeHost]:
    async with working_cluster(api, temporal_server.address, "host-a", "host-b") as fake:
        yield fake


async def ask(api: Stand, **changes: object) -> str:
    answer = await api.client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=4,
        **changes,  # type: ignore[arg-type, call-overload]
    )
    return str(answer.choices[0].message.content)


async def test_a_hundred_requests_at_once_cause_one_start(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL, max_concurrency=4, max_instances=1)
    host.token_at = scripted(ids_of("yes"))
    answers = await asyncio.gather(*(ask(api) for _ in range(100)))
    assert answers == ["yes"] * 100
    assert len(host.started) == 1
    engine = next(iter(api.engines.values()))
    assert engine.most_running <= 4
    assert api.services.table.lane(MODEL).running == 0
    # The store was told at once (again if the plan took long), and what the first request saw is kept.
    assert set(api.store.prepared) == {f"{MODEL}@abcd1234"}

    async def kept() -> bool:
        async with api.database.session() as session:
            start = (await list_starts(session))[0]
        return start.first_token_s is not None and start.actual is not None

    deadline = asyncio.get_running_loop().time() + 10
    while not await kept():
        assert asyncio.get_running_loop().time() < deadline


async def test_a_store_is_hinted_on_the_line_that_stands_to_it(api: Stand, host: FakeHost) -> None:
    api.store.takes_lines = True
    await api.deploy(MODEL)
    host.token_at = scripted(ids_of("yes"))
    async with asyncio.timeout(30):
        while not await api.services.hints.until_open(api.store.address):  # noqa: ASYNC110 - the fleet is looked at by itself
            await asyncio.sleep(0.05)
    assert await ask(api) == "yes"
    assert f"{MODEL}@abcd1234" in api.store.on_line
    assert not api.store.prepared, "nor by a call of its own"


async def test_a_store_that_dies_over_the_tokenizer_is_asked_again(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL)
    host.token_at = scripted(ids_of("yes"))
    api.store.deaths = 3
    assert await ask(api) == "yes"
    assert api.store.deaths == 0


async def test_a_store_that_stays_away_is_named_at_the_deadline(
    database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal
) -> None:
    address = temporal_server.address
    async with (
        stand(database, tmp_path, temporal_address=address, start_timeout_s=8) as api,
        working_cluster(api, address, "host-a"),
    ):
        await api.deploy(MODEL)
        api.store.deaths = 1_000_000
        with pytest.raises(openai.InternalServerError, match=r"store .* is not answering"):
            await ask(api)


async def test_a_stream_says_that_it_is_starting_and_then_answers(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL)
    host.token_at = scripted(ids_of("here I am"))
    host.gate.clear()
    payload = {"model": MODEL, "messages": HELLO, "stream": True}
    lines = []
    async with api.http.stream("POST", "/v1/chat/completions", json=payload) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if len([row for row in lines if row.startswith(": starting cold")]) == 2:
                host.gate.set()
    data = [json.loads(row[6:]) for row in lines if row.startswith("data: {")]
    assert "".join(row["choices"][0]["delta"].get("content", "") for row in data) == "here I am"
    assert lines.count("data: [DONE]") == 1


async def test_a_failed_start_is_a_503_with_its_reason_or_an_error_event(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL)
    host.failure = "the weights are torn"
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(api)
    assert caught.value.status_code == 503
    assert caught.value.code == "start_failed"
    assert "the weights are torn" in str(caught.value)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    # Once headers are out, the same comes as an event that the official client raises.
    host.gate.clear()
    stream = await api.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)  # type: ignore[arg-type]
    host.gate.set()
    with pytest.raises(openai.APIError, match="the weights are torn"):
        async for _ in stream:
            pass


async def test_a_long_queue_starts_another_instance_up_to_the_maximum(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL, max_concurrency=1, max_instances=2)
    first = await api.warm(MODEL)
    first.gate.clear()
    waiting = [asyncio.create_task(ask(api)) for _ in range(6)]
    await until(lambda: len(api.services.routes_of(MODEL)) == 2)
    first.gate.set()
    await asyncio.gather(*waiting)
    assert len(host.started) == 1
    assert all(engine.most_running == 1 for engine in api.engines.values())


async def test_no_free_gpu_is_a_503_at_once_and_a_freed_one_is_taken(api: Stand, host: FakeHost) -> None:
    for number, name in enumerate(("one", "two")):
        await api.warm(name, keep_alive_s=3600)
        assert len(host.started) == 0, number
    await api.deploy(MODEL)
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(api, timeout=5)
    assert caught.value.code == "no_capacity"
    # Nobody knows what those engines do, so they may be idle for an hour before they end.
    assert "the soonest start takes 36" in str(caught.value)
    decided = (await api.http.get("/admin/v1/decisions", params={"model": MODEL})).json()["decisions"]
    assert decided[0]["kind"] == "reject"
    assert [row["reason"] for row in decided[0]["candidates"]] == ["0 of 1 GPUs free"] * 2


async def test_a_start_longer_than_anyone_waits_begins_all_the_same(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL, size_bytes=10_000_000_000)
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(api)
    assert caught.value.code == "start_timeout"
    assert int(caught.value.response.headers["retry-after"]) > 30
    await until(lambda: api.services.routes_of(MODEL))
    await ask(api)
    assert len(host.started) == 1


async def test_a_start_waits_for_temporal_to_come_back(
    database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal
) -> None:
    async with stand(database, tmp_path, temporal_address="127.0.0.1:9", start_timeout_s=8) as api:
        await api.deploy(MODEL)
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
        assert caught.value.status_code == 503
        assert caught.value.code in ("start_failed", "start_timeout")

        async def gpus_held() -> int:
            async with database.session() as session:
                return int(await session.scalar(text("SELECT count(*) FROM reservations")) or 0)

        deadline = asyncio.get_running_loop().time() + 10
        while await gpus_held():
            assert asyncio.get_running_loop().time() < deadline


async def test_an_unknown_model_is_a_404_and_a_full_queue_a_429(database: Database, tmp_path: Path) -> None:
    async with stand(database, tmp_path, start_timeout_s=5, max_queue_per_model=3) as api:
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(api)
        assert unknown.value.code == "model_not_found"
        engine = await api.warm(MODEL, max_concurrency=1)
        engine.gate.clear()
        running = asyncio.create_task(ask(api))
        await until(lambda: engine.running == 1)
        queued = [asyncio.create_task(ask(api)) for _ in range(3)]
        await until(lambda: api.services.table.lane(MODEL).waiting == 3)
        with pytest.raises(openai.RateLimitError) as full:
            await ask(api)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1
        engine.gate.set()
        await asyncio.gather(running, *queued)


async def test_a_known_tokenizer_refuses_a_long_prompt_without_a_start(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL)
    await ask(api)
    record = await api.services.catalog.find(MODEL)
    # Another process with the same state directory: the tokenizer comes from its disk.
    api.services.texts.forget(record.checkpoint_id)
    served = len(api.store.served)
    fresh = await api.services.catalog.reload(MODEL)
    assert fresh is not None and fresh.manifest_digest
    await api.services.texts.preload([fresh])
    assert api.services.texts.loaded(record.checkpoint_id) is not None
    assert len(api.store.served) == served
    await api.deploy("twin", checkpoint_id=record.checkpoint_id)
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.completions.create(model="twin", prompt=[5] * CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    assert len(host.started) == 1


async def test_an_operator_can_start_a_model_and_see_how_it_went(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL)
    started = await api.http.post(f"/admin/v1/models/{MODEL}/start")
    assert (started.status_code, started.json()["state"]) == (200, "ready"), started.text
    assert started.json()["host_id"] in ("host-a", "host-b")
    again = await api.http.post(f"/admin/v1/models/{MODEL}/start", json={"wait": False})
    assert (again.status_code, again.json()["state"]) == (200, "ready")
    assert len(host.started) == 1
    rows = (await api.http.get("/admin/v1/starts", params={"model": MODEL})).json()["starts"]
    assert rows[0]["instance_id"] == started.json()["instance_id"]
    assert {row["host_id"] for row in rows[0]["candidates"]} == {"host-a", "host-b"}
    found = await api.http.get(f"/admin/v1/decisions/{started.json()['decision_id']}")
    assert found.json()["instance_id"] == rows[0]["instance_id"]


async def test_deleting_a_running_model_ends_its_instances_and_then_itself(
    api: Stand, host: FakeHost
) -> None:
    await api.deploy(MODEL)
    await ask(api)
    answer = await api.http.delete(f"/admin/v1/models/{MODEL}")
    assert (answer.status_code, answer.json()["state"]) == (202, "deleting")
    with pytest.raises(openai.NotFoundError):
        await ask(api)
    repeated = await api.http.delete(f"/admin/v1/models/{MODEL}")
    assert repeated.status_code in (200, 202, 404)
    await until(lambda: api.services.catalog.known(MODEL) is None, within_s=20)
    assert len(host.stopped) == 1
    assert (await api.http.delete(f"/admin/v1/models/{MODEL}")).status_code == 404


async def test_deleting_a_model_that_starts_undoes_the_start(api: Stand, host: FakeHost) -> None:
    await api.deploy(MODEL)
    host.gate.clear()
    waiting = asyncio.create_task(ask(api))
    await until(lambda: host.started)
    answer = await api.http.delete(f"/admin/v1/models/{MODEL}")
    assert (answer.status_code, answer.json()["live_instances"]) == (202, 1)
    host.gate.set()
    with pytest.raises(openai.APIStatusError) as caught:
        await waiting
    assert caught.value.status_code in (404, 503)
    await until(lambda: api.services.catalog.known(MODEL) is None, within_s=20)

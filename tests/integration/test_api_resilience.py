"""What a client sees when engines die and when the databases are away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from api_stand import NOWHERE, Stand, stand, until
from fake_engine import FakeEngine, hashed

from firstlight.database import schema
from firstlight.database.connection import Database
from firstlight.domain.errors import EngineBusy, InstanceDraining
from firstlight.launcher.embedded.postgres import EmbeddedPostgres

MODEL = "tiny"
TOKENS = 30


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path, start_timeout_s=5) as made:
        yield made


async def complete(api: Stand, *, seed: int = 3, tokens: int = TOKENS) -> str:
    answer = await api.client.completions.create(model=MODEL, prompt="The fox", seed=seed, max_tokens=tokens)
    return answer.choices[0].text


async def two_engines(api: Stand) -> tuple[FakeEngine, FakeEngine]:
    first = await api.warm(MODEL, max_instances=2)
    return first, await api.warm(MODEL)


async def serving_engine(*engines: FakeEngine) -> FakeEngine:
    await until(lambda: any(engine.running for engine in engines))
    return next(engine for engine in engines if engine.running)


async def test_a_stream_goes_on_unchanged_when_its_engine_dies(api: Stand) -> None:
    engines = await two_engines(api)
    undisturbed = await complete(api)
    for engine in engines:
        engine.pause_s = 0.01
    for dies_at in (0, 1, TOKENS // 2):
        await until(lambda: not any(engine.running for engine in engines))
        for engine in engines:
            engine.dies_at = None
            engine.requests.clear()
        disturbed = asyncio.create_task(complete(api))
        (await serving_engine(*engines)).dies_at = dies_at
        assert await disturbed == undisturbed
        resumed = [list(request.resumed_token_ids) for engine in engines for request in engine.requests]
        assert sorted(map(len, resumed)) == [0, dies_at]
        # The engine is well after all (only its stream broke), so it is trusted again.
        await until(lambda: len(api.services.routes_of(MODEL)) == 2)


async def test_a_stream_goes_on_when_the_engines_process_ends(api: Stand) -> None:
    engines = await two_engines(api)
    undisturbed = await complete(api)
    for engine in engines:
        engine.pause_s = 0.01
    disturbed = asyncio.create_task(complete(api))
    serving = await serving_engine(*engines)
    await until(lambda: serving.running == 1)
    await asyncio.sleep(0)
    await serving.stop()
    assert await disturbed == undisturbed
    assert len(api.services.routes_of(MODEL)) == 1


async def test_a_stream_follows_its_request_to_where_it_moves(api: Stand) -> None:
    engines = await two_engines(api)
    undisturbed = await complete(api)
    for moves_at in (0, 1, TOKENS // 2, TOKENS - 1):
        # An engine hears a moment after the client that a stream has ended.
        await until(lambda: not any(engine.running for engine in engines))
        for engine in engines:
            engine.requests.clear()
            engine.moves_to = None
            engine.pause_s = 0.005
        disturbed = asyncio.create_task(complete(api))
        source = await serving_engine(*engines)
        destination = next(engine for engine in engines if engine is not source)
        source.moves_to, source.moves_at = destination, moves_at
        assert await disturbed == undisturbed
        attached = destination.requests[-1]
        assert attached.session_id == f"session/{attached.request_id}"
        assert len(attached.resumed_token_ids) >= moves_at
        # A move is no failure: both are still trusted, and all places are free again.
        lane = api.services.table.lane(MODEL)
        assert len(lane.routes) == 2 and lane.running == 0


async def test_a_destination_that_dies_after_the_hand_over_costs_the_client_nothing(api: Stand) -> None:
    engines = await two_engines(api)
    undisturbed = await complete(api)
    for engine in engines:
        engine.pause_s = 0.01
    disturbed = asyncio.create_task(complete(api))
    source = await serving_engine(*engines)
    destination = next(engine for engine in engines if engine is not source)
    destination.dies_at = TOKENS // 2
    source.moves_to, source.moves_at = destination, 3
    await until(lambda: destination.running == 1)
    source.moves_to = None
    assert await disturbed == undisturbed
    # From the journal, not from a session that died with its engine.
    assert source.requests[-1].session_id == ""
    assert list(map(len, [request.resumed_token_ids for request in source.requests]))[-1] == TOKENS // 2


async def test_usage_and_text_count_a_resumed_token_once(api: Stand) -> None:
    engines = await two_engines(api)
    for engine in engines:
        engine.pause_s = 0.01
    payload = {
        "model": MODEL,
        "prompt": "The fox",
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = []
    async with api.http.stream("POST", "/v1/completions", json=payload) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))
                if len(events) == 5:
                    (await serving_engine(*engines)).dies_at = 12
    assert events[-1]["usage"]["completion_tokens"] == TOKENS
    assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_an_engine_that_fails_for_ever_ends_in_a_clear_error(api: Stand) -> None:
    engine = await api.warm(MODEL)
    engine.dies_at = 4
    engine.pause_s = 0.005
    # Well whenever it is asked, broken whenever it serves.
    with pytest.raises(openai.InternalServerError) as caught:
        await complete(api)
    assert caught.value.code in ("engine_gone", "start_timeout")
    assert "retry-after" in caught.value.response.headers
    # An error event, or, if its place was already given up before the first token, a plain answer.
    with pytest.raises(openai.APIError):
        stream = await api.client.completions.create(model=MODEL, prompt="x", max_tokens=TOKENS, stream=True)
        async for _ in stream:
            pass


@pytest.mark.parametrize("failure", [InstanceDraining("it drains"), EngineBusy("all slots are taken")])
async def test_a_draining_or_full_engine_is_passed_over(
    api: Stand, failure: InstanceDraining | EngineBusy
) -> None:
    engines = await two_engines(api)
    undisturbed = await complete(api)
    engines[0].failure = failure
    assert [await complete(api) for _ in range(4)] == [undisturbed] * 4


async def test_a_stale_route_is_never_served(api: Stand) -> None:
    engines = await two_engines(api)
    engines[0].epoch += 1
    texts = {await complete(api) for _ in range(4)}
    assert len(texts) == 1
    await until(lambda: len(api.services.routes_of(MODEL)) == 1)


async def test_requests_spread_over_instances_by_load(api: Stand) -> None:
    engines = await two_engines(api)
    for engine in engines:
        engine.gate.clear()
    running = [asyncio.create_task(complete(api, seed=seed)) for seed in range(8)]
    await until(lambda: sum(engine.running for engine in engines) == 8)
    assert [engine.running for engine in engines] == [4, 4]
    for engine in engines:
        engine.gate.set()
    await asyncio.gather(*running)


async def test_warm_requests_need_neither_postgres_nor_temporal(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    url = await asyncio.to_thread(server.start)
    try:
        await asyncio.to_thread(schema.upgrade, url)
        database = Database(url)
        async with stand(database, tmp_path / "state", temporal_address=NOWHERE, start_timeout_s=1) as api:
            await api.warm(MODEL, token_at=hashed(300))
            before = await complete(api)
            await asyncio.to_thread(server.stop)
            assert [await complete(api) for _ in range(20)] == [before] * 20
            assert (await api.http.get("/v1/models")).json()["data"][0]["id"] == MODEL
            assert (await api.http.get("/healthz")).status_code == 200
            # What is not known can only be asked of Postgres.
            unknown = await api.http.post("/v1/completions", json={"model": "other", "prompt": "x"})
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "database_unavailable")

            async def readiness() -> int:
                return (await api.http.get("/readyz")).status_code

            assert await readiness() == 503
            # It comes back by itself.
            await asyncio.to_thread(server.start)
            await until(lambda: api.services.health.postgres.say() == "ok", within_s=20)
            assert await complete(api) == before
        await database.close()
    finally:
        await asyncio.to_thread(server.stop)

"""What a client hears across a seam: stop strings, log-probabilities, usage; at the worst a clear error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_model import ids_of
from api_stand import Stand, stand, until
from fake_engine import FakeEngine

from api.dispatch import MAX_RESUMES
from firstlight.contracts.instances import FinishInput
from firstlight.database.connection import Database
from firstlight.database.instances_repository import finish_instance

MODEL = "tiny"
TOKENS = 24


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path, start_timeout_s=5, api_drain_s=1) as made:
        yield made


# A letter of several bytes before the stop string, which begins and ends within a token.
WORDS = "The quick 🙂 brown fox jumps over the lazy dog. " * 3
STOP, BEFORE = "umps over the laz", "The quick 🙂 brown fox j"


async def two_engines(api: Stand) -> tuple[FakeEngine, FakeEngine]:
    ids = ids_of(WORDS)
    assert len(ids) >= TOKENS

    def token_at(prompt: Sequence[int], position: int, seed: int) -> int:
        return ids[position]

    first = await api.warm(MODEL, max_instances=2, token_at=token_at)
    return first, await api.warm(MODEL, token_at=token_at)


class Events:
    """One event stream of /v1/completions, read by a task of its own. Any: decoded JSON."""

    def __init__(self, api: Stand, *, http: httpx.AsyncClient | None = None, **asked: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.is_done = False
        self._body = {
            "model": MODEL,
            "prompt": "The fox",
            "max_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
            **asked,
        }
        self._http = http or api.http
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._http.stream("POST", "/v1/completions", json=self._body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))
                self.is_done |= line == "data: [DONE]"

    async def heard(self) -> dict[str, Any]:
        """Text, log-probabilities, reason and usage of a stream that ended well."""
        await self.reading
        assert self.is_done and "error" not in self.events[-1], self.events[-1]
        choices = [choice for event in self.events for choice in event["choices"]]
        lists = [choice["logprobs"] for choice in choices if choice.get("logprobs")]
        return {
            "text": "".join(choice["text"] for choice in choices),
            "reason": choices[-1]["finish_reason"],
            "usage": self.events[-1]["usage"],
            "tokens": [token for each in lists for token in each["tokens"]],
            "logprobs": [value for each in lists for value in each["token_logprobs"]],
            "offsets": [value for each in lists for value in each["text_offset"]],
        }


async def serving(*engines: FakeEngine) -> tuple[FakeEngine, FakeEngine]:
    """The engine that runs the request, and the other one."""
    await until(lambda: any(engine.running for engine in engines))
    source = next(engine for engine in engines if engine.running)
    return source, next(engine for engine in engines if engine is not source)


async def disturbed(
    api: Stand, engines: tuple[FakeEngine, FakeEngine], at: int, by: str, **asked: Any
) -> dict[str, Any]:
    """The stream with a seam at token `at`: its instance moves, or dies."""
    for engine in engines:
        engine.moves_to, engine.dies_at, engine.gate = None, None, asyncio.Event()
    await until(lambda: len(api.services.routes_of(MODEL)) == 2)
    events = Events(api, **asked)
    source, other = await serving(*engines)
    if by == "moves":
        source.moves_to, source.moves_at = other, at
    else:
        source.dies_at = at
    for engine in engines:
        engine.gate.set()
    return await events.heard()


@pytest.mark.parametrize("by", ["moves", "dies"])
async def test_stop_strings_logprobs_and_usage_are_right_wherever_the_seam_is(api: Stand, by: str) -> None:
    engines = await two_engines(api)
    whole = await Events(api, logprobs=1).heard()
    assert whole["usage"]["completion_tokens"] == TOKENS == len(whole["tokens"])
    cut = await Events(api, logprobs=1, stop=STOP).heard()
    assert (cut["reason"], cut["text"]) == ("stop", BEFORE)
    # Usage counts what was generated, the stop string's own tokens too: the seam can cut it anywhere.
    first, last = len(cut["tokens"]), cut["usage"]["completion_tokens"]
    assert first + 2 <= last < TOKENS
    for at in range(last):
        assert await disturbed(api, engines, at, by, logprobs=1, stop=STOP) == cut, f"seam at {at}"
    for at in (5, TOKENS - 1):
        assert await disturbed(api, engines, at, by, logprobs=1) == whole, f"seam at {at}"


async def test_a_request_resumes_so_often_and_then_hears_a_clear_error(api: Stand) -> None:
    engine = await api.warm(MODEL)
    engine.gate.clear()
    events = Events(api)
    await until(lambda: engine.running == 1)
    engine.dies_at = 4
    engine.gate.set()
    await asyncio.wait_for(events.reading, 30)
    assert events.is_done
    error = events.events[-1]["error"]
    assert error["code"] == "engine_gone" and error["message"]
    # The first time and every resume, always behind the same four tokens.
    assert [len(request.resumed_token_ids) for request in engine.requests] == [0] + [4] * MAX_RESUMES


async def end(api: Stand, engine: FakeEngine) -> None:
    """The database is told that the instance has stopped, while its engine still streams."""
    async with api.database.transaction() as session:
        ending = FinishInput(engine.instance_id, engine.epoch, "stopped", "test")
        await finish_instance(session, ending)
    await until(lambda: len(api.services.routes_of(MODEL)) == 1)


async def test_a_stream_hears_its_engine_out_when_the_database_is_quicker(api: Stand) -> None:
    """The instance has ended, and its last tokens are still on their way: they are not thrown away."""
    engines = await two_engines(api)
    undisturbed = await Events(api).heard()
    for engine in engines:
        engine.gate.clear()
        engine.requests.clear()
    events = Events(api)
    source, other = await serving(*engines)
    await end(api, source)
    source.gate.set()
    assert await events.heard() == undisturbed
    assert not other.requests


async def test_a_stream_that_hangs_on_an_ended_instance_goes_on_elsewhere(api: Stand) -> None:
    """Its channel is closed under it, which must not be taken for a client that has left."""
    engines = await two_engines(api)
    undisturbed = await Events(api).heard()
    for engine in engines:
        engine.gate.clear()
    events = Events(api)
    source, other = await serving(*engines)
    await end(api, source)
    other.gate.set()
    assert await asyncio.wait_for(events.heard(), 20) == undisturbed
    source.gate.set()


async def test_an_api_that_stops_tells_the_clients_it_cuts_off(database: Database, tmp_path: Path) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        async with stand(database, tmp_path, api_drain_s=1) as api:
            http.base_url = httpx.URL(api.url)
            engine = await api.warm(MODEL)
            engine.pause_s = 0.1
            events = Events(api, http=http, max_tokens=400)
            await until(lambda: len(events.events) > 2)
        # It has stopped by now.
        await asyncio.wait_for(events.reading, 10)
    assert events.events[-1]["error"]["code"] == "cancelled" and events.is_done


async def test_a_request_that_follows_its_connection_into_a_stop_is_answered(
    database: Database, tmp_path: Path
) -> None:
    async with stand(database, tmp_path) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(api.url).port)

        async def ask() -> bytes:
            # By now the API is told to stop, and takes no more connections.
            await asyncio.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", httpx.URL(api.url).port)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return await reader.readline()

        asking = asyncio.create_task(ask())
    assert await asking == b"HTTP/1.1 200 OK\r\n"
    writer.close()

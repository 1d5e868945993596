"""Embeddings as the official client asks for them: forms, figures, limits, and engines that die."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from api_model import CONTEXT, embedding_file, ids_of
from api_stand import Stand, stand, until
from fake_engine import VECTOR_SIZE, FakeEngine, vector_of

from firstlight.database.connection import Database

MODEL = "vectors"
TEXTS = ["The dog", "a fox", "The quick brown fox"]


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path) as made:
        yield made


async def warm(api: Stand, **settings: object) -> FakeEngine:
    return await api.warm(MODEL, files=embedding_file(size=VECTOR_SIZE), **settings)


def expected(text: str) -> list[float]:
    return list(struct.unpack("<4f", vector_of(ids_of(text))))


async def test_every_form_of_input_and_of_answer(api: Stand) -> None:
    engine = await warm(api)
    tokens = [ids_of(text) for text in TEXTS]
    for form, count in ((TEXTS[0], 1), (TEXTS, 3), (tokens[0], 1), (tokens, 3)):
        # By itself the client asks for base64.
        for encoding in (openai.omit, "float"):
            answer = await api.client.embeddings.create(model=MODEL, input=form, encoding_format=encoding)  # type: ignore[arg-type]
            assert [row.index for row in answer.data] == list(range(count))
            assert [row.embedding for row in answer.data] == [expected(text) for text in TEXTS[:count]]
            used = sum(map(len, tokens[:count]))
            assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (used, used)
    assert engine.requests == []
    # However many inputs: one call, and so one place.
    assert [len(request.inputs) for request in engine.embedded] == [1, 1, 3, 3, 1, 1, 3, 3]


async def test_shorter_vectors_have_length_one(api: Stand) -> None:
    await warm(api)
    answer = await api.client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=2)
    whole = expected(TEXTS[0])
    assert answer.data[0].embedding == pytest.approx([each / math.hypot(*whole[:2]) for each in whole[:2]])
    with pytest.raises(openai.BadRequestError, match="4 dimensions") as refused:
        await api.client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=5)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_input"),
        ({"input": ["x", ""]}, "input", "invalid_input"),
        ({"input": [[1], []]}, "input", "invalid_input"),
        ({"input": [10**6]}, "input", "invalid_input"),
        ({"input": [[1] * (CONTEXT + 1)]}, "input", "context_length_exceeded"),
        ({"input": "\ud800"}, "input", "invalid_input"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_input"),
        ({"dimensions": 0}, "dimensions", "invalid_input"),
        ({"temperature": 1}, "temperature", "unsupported_parameter"),
    ],
)
async def test_what_is_wrong_is_named(api: Stand, change: dict[str, object], param: str, code: str) -> None:
    engine = await warm(api)
    response = await api.http.post(
        "/v1/embeddings",
        content=json.dumps({"model": MODEL, "input": "x", **change}),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert engine.embedded == []


async def test_an_input_may_fill_the_context(api: Stand) -> None:
    await warm(api)
    answer = await api.client.embeddings.create(model=MODEL, input=[1] * CONTEXT, user="someone")
    assert answer.usage.prompt_tokens == CONTEXT


async def test_a_model_that_only_embeds_refuses_to_write(api: Stand) -> None:
    engine = await warm(api)
    for attempt in (
        api.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello!"}]),
        api.client.completions.create(model=MODEL, prompt="Hello!"),
    ):
        with pytest.raises(openai.BadRequestError, match="only embeds") as refused:
            await attempt
        assert (refused.value.param, refused.value.code) == ("model", "unsupported_parameter")
    assert engine.requests == []
    both = await api.warm("both", files=embedding_file(size=VECTOR_SIZE, generates=True))
    await api.client.completions.create(model="both", prompt="Hello!", max_tokens=1)
    await api.client.embeddings.create(model="both", input="Hello!")
    assert (len(both.requests), len(both.embedded)) == (1, 1)


async def test_vectors_that_came_outlive_their_engine(api: Stand) -> None:
    first = await warm(api, max_instances=2)
    second = await warm(api)
    first.dies_at, second.dies_at = 2, 1
    answer = await api.client.embeddings.create(model=MODEL, input=TEXTS)
    assert [row.embedding for row in answer.data] == [expected(text) for text in TEXTS]
    asked = [len(request.inputs) for engine in (first, second) for request in engine.embedded]
    # The last ones come first, and are not asked for again.
    assert sorted(asked)[-1] == 3 and sum(asked) < 2 * 3 + 1


async def test_a_client_that_leaves_frees_its_place(api: Stand) -> None:
    engine = await warm(api)
    engine.gate.clear()
    asking = asyncio.ensure_future(api.http.post("/v1/embeddings", json={"model": MODEL, "input": TEXTS}))
    await until(lambda: engine.running == 1)
    asking.cancel()
    await until(lambda: engine.running == 0)
    assert engine.cancelled == 1
    await until(lambda: api.services.table.lane(MODEL).running == 0)


async def test_a_request_counts_for_its_model_and_its_key(database: Database, tmp_path: Path) -> None:
    async with stand(database, tmp_path, api_keys="root", api_key="root") as api:
        await warm(api)
        made = await api.http.post("/admin/v1/keys", json={"name": "someone", "requests_per_minute": 1})
        headers = {"authorization": f"Bearer {made.json()['key']}"}
        asked = {"model": MODEL, "input": TEXTS}
        answers = [await api.http.post("/v1/embeddings", json=asked, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        told = (await api.http.get("/metrics")).text
        answer = await api.http.get("/admin/v1/usage", params={"key_id": made.json()["key_id"]})
    used = sum(len(ids_of(text)) for text in TEXTS)
    [row] = [row for row in answer.json()["usage"] if row["model"] == MODEL]
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (1, used, 0)
    for line in (
        f'vllm:prompt_tokens_total{{model_name="{MODEL}"}} {float(used)}',
        f'vllm:request_success_total{{finished_reason="stop",model_name="{MODEL}"}} 3.0',
        f'vllm:e2e_request_latency_seconds_count{{model_name="{MODEL}"}} 1.0',
        'firstlight_answers_total{route="/v1/embeddings",status="200"} 1.0',
    ):
        assert line in told, line

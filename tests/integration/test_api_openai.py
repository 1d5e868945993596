"""The OpenAI dialect, as the official client sees it, on warm instances."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from api_model import CONTEXT, ids_of, model_text
from api_stand import Stand, stand, until
from fake_engine import scripted

from firstlight.database.connection import Database

MODEL = "tiny"
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path) as made:
        yield made


async def chat_events(api: Stand, **body: object) -> tuple[list[dict[str, object]], list[str]]:
    """Parsed events without [DONE], and the raw lines that are not empty."""
    payload = {"model": MODEL, "messages": HELLO, "stream": True, **body}
    async with api.http.stream("POST", "/v1/chat/completions", json=payload) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.aiter_lines() if line]
    data = [line[6:] for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(entry) for entry in data[:-1]], lines


async def test_a_chat_answer_is_what_the_engine_said(api: Stand) -> None:
    words = "The lazy dog, naïve 🙂."
    engine = await api.warm(MODEL, token_at=scripted(ids_of(words)))
    answer = await api.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=200)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == words
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    prompt = list(engine.requests[0].prompt_token_ids)
    assert prompt == ids_of("<|user|>Hello!<|end|>\n<|assistant|>")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(ids_of(words))
    assert tuple(engine.requests[0].stop_token_ids) == model_text().end_token_ids


async def test_a_chat_stream_has_role_text_reason_usage_and_done(api: Stand) -> None:
    words = "quick brown 日本語"
    await api.warm(MODEL, token_at=scripted(ids_of(words)))
    events, _ = await chat_events(api, stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}  # type: ignore[index]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])  # type: ignore[index]
    assert text == words
    assert events[-2]["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len(ids_of(words))  # type: ignore[index]
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1


async def test_the_official_client_reads_our_streams(api: Stand) -> None:
    await api.warm(MODEL, token_at=scripted(ids_of("over the fox")))
    stream = await api.client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        stream=True,
        n=2,
        seed=7,  # type: ignore[arg-type]
    )
    texts, reasons = {0: "", 1: ""}, {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {0: "over the fox", 1: "over the fox"}
    assert reasons == {0: "stop", 1: "stop"}


async def test_choices_have_seeds_of_their_own_and_a_seed_repeats(api: Stand) -> None:
    engine = await api.warm(MODEL)
    answers = [
        await api.client.completions.create(model=MODEL, prompt="x", n=3, seed=11, max_tokens=6)
        for _ in range(2)
    ]
    texts = [[choice.text for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert sorted(request.sampling.seed for request in engine.requests[:3]) == [11, 12, 13]


async def test_prompts_come_as_text_tokens_or_lists_of_both(api: Stand) -> None:
    engine = await api.warm(MODEL, token_at=scripted(ids_of("yes")))
    forms = ["The dog", ["The dog", "a fox"], ids_of("The dog"), [ids_of("The dog"), ids_of("a fox")]]
    for form, count in zip(forms, (1, 2, 1, 2), strict=True):
        answer = await api.client.completions.create(model=MODEL, prompt=form)  # type: ignore[arg-type]
        assert [choice.text for choice in answer.choices] == ["yes"] * count
        assert [choice.index for choice in answer.choices] == list(range(count))
    prompts = {tuple(request.prompt_token_ids) for request in engine.requests}
    assert prompts == {tuple(ids_of("The dog")), tuple(ids_of("a fox"))}


async def test_legacy_defaults_echo_and_length(api: Stand) -> None:
    engine = await api.warm(MODEL)
    answer = await api.client.completions.create(model=MODEL, prompt="The fox", echo=True)
    assert answer.choices[0].text.startswith("The fox")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    assert engine.requests[0].max_tokens == 16


async def test_stop_strings_cut_the_text_and_end_the_engines_work(api: Stand) -> None:
    words = "The quick brown fox jumps over the lazy dog."
    engine = await api.warm(MODEL, token_at=scripted(ids_of(words)))
    engine.pause_s = 0.005
    for stream in (False, True):
        if stream:
            events, _ = await chat_events(api, stop=["wn fox", "zzz"], max_tokens=50)
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)  # type: ignore[index]
            reason = events[-1]["choices"][0]["finish_reason"]  # type: ignore[index]
        else:
            answer = await api.client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                stop=["wn fox", "zzz"],  # type: ignore[arg-type]
            )
            text, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
        assert (text, reason) == ("The quick bro", "stop")
    await until(lambda: engine.running == 0)


async def test_logprobs_list_every_token_with_its_bytes(api: Stand) -> None:
    words = "the 🙂 dog"
    await api.warm(MODEL, token_at=scripted(ids_of(words)))
    answer = await api.client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        logprobs=True,
        top_logprobs=2,  # type: ignore[arg-type]
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == len(ids_of(words))
    assert b"".join(bytes(row.bytes or []) for row in logprobs.content).decode() == words
    assert all(len(row.top_logprobs) == 2 for row in logprobs.content)
    events, _ = await chat_events(api, logprobs=True, top_logprobs=1)
    streamed = [
        row
        for event in events
        if event["choices"][0]["logprobs"]  # type: ignore[index]
        for row in event["choices"][0]["logprobs"]["content"]  # type: ignore[index]
    ]
    assert b"".join(bytes(row["bytes"]) for row in streamed).decode() == words
    legacy = await api.client.completions.create(model=MODEL, prompt="x", logprobs=2)
    rows = legacy.choices[0].logprobs
    assert rows is not None and rows.tokens is not None and rows.text_offset is not None
    assert rows.text_offset[0] == 0
    assert len(rows.tokens) == len(ids_of(words))


async def test_sampling_parameters_reach_the_engine(api: Stand) -> None:
    engine = await api.warm(MODEL)
    body = {
        "model": MODEL,
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *HELLO],
        "max_completion_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 5,
        "min_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100},
        "seed": -1,
        "ignore_eos": True,
        "user": "someone",
        "stop": None,
    }
    response = await api.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    request = engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.75, 5, 0.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.repetition_penalty == 1.5
    assert dict(sampling.logit_bias) == {7: -100.0}
    assert sampling.seed == 2**64 - 1
    assert request.max_tokens == 3 and request.ignore_eos and not request.stop_token_ids
    assert model_text().decode(list(request.prompt_token_ids)).startswith("Be brief.")


async def test_models_are_listed_running_or_not(api: Stand) -> None:
    await api.warm(MODEL)
    await api.deploy("asleep")
    assert [model.id async for model in await api.client.models.list()] == ["asleep", MODEL]
    assert (await api.client.models.retrieve("asleep")).owned_by == "firstlight"
    with pytest.raises(openai.NotFoundError) as caught:
        await api.client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"audio": {}}, "audio"),
        ({"best_of": 3}, "best_of"),
        ({"made_up": 1}, "made_up"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 1.5}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"max_tokens": CONTEXT}, "messages"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    api: Stand, change: dict[str, object], param: str
) -> None:
    await api.warm(MODEL)
    response = await api.http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_neutral_values_of_unserved_parameters_pass(api: Stand) -> None:
    await api.warm(MODEL, token_at=scripted(ids_of("ok")))
    body = {"tools": None, "response_format": {"type": "text"}, "best_of": 1, "store": False}
    body |= {"metadata": {"order": "7"}, "safety_identifier": "somebody", "prompt_cache_key": None}
    response = await api.http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "n": 1, **body}
    )
    assert response.status_code == 200, response.text


async def test_malformed_bodies_and_unknown_paths_answer_in_openais_shape(api: Stand) -> None:
    for content in (b"{", b"[]", b"\xff", b'{"a":' * 100_000):
        limited = content[: 200 << 10]
        response = await api.http.post("/v1/chat/completions", content=limited)
        assert response.status_code == 400
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    big = await api.http.post("/v1/chat/completions", content=b"x" * (300 << 10))
    assert (big.status_code, big.json()["error"]["code"]) == (413, "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * (8 << 10)

    chunked = await api.http.post("/v1/chat/completions", content=chunks())
    assert chunked.status_code == 413
    missing = await api.http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (await api.http.get("/v1/chat/completions")).status_code == 405


async def test_a_prompt_beyond_the_context_is_refused_with_its_code(api: Stand) -> None:
    engine = await api.warm(MODEL)
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.completions.create(model=MODEL, prompt=[5] * (CONTEXT + 1))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await api.client.completions.create(model=MODEL, prompt=[10**6])
    assert engine.requests == []


async def test_a_model_without_embeddings_says_so(api: Stand) -> None:
    engine = await api.warm(MODEL)
    with pytest.raises(openai.BadRequestError, match="no embeddings") as caught:
        await api.client.embeddings.create(model=MODEL, input=["x", "y"])
    assert (caught.value.param, caught.value.code) == ("model", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        await api.client.embeddings.create(model="absent", input="x")
    wrong = await api.http.post("/v1/embeddings", json={"model": MODEL, "input": []})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "input")
    assert engine.requests == []


async def test_request_ids_come_back(api: Stand) -> None:
    mine = await api.http.get("/healthz", headers={"x-request-id": "abc-1"})
    assert mine.headers["x-request-id"] == "abc-1"
    made = await api.http.get("/v1/nothing", headers={"x-request-id": "bad id!"})
    assert made.headers["x-request-id"].startswith("req-")


async def test_a_client_that_leaves_frees_its_place(api: Stand) -> None:
    engine = await api.warm(MODEL)
    engine.pause_s = 0.01
    payload = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 400}
    async with api.http.stream("POST", "/v1/chat/completions", json=payload) as response:
        async for _ in response.aiter_lines():
            break
    await until(lambda: engine.running == 0 and engine.cancelled == 1)
    assert api.services.table.lane(MODEL).running == 0
    # The same for a request that does not stream.
    task = asyncio.create_task(
        api.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 400})
    )
    await until(lambda: engine.running == 1)
    task.cancel()
    await until(lambda: engine.running == 0 and engine.cancelled == 2)


async def test_figures_have_vllms_names(api: Stand) -> None:
    await api.warm(MODEL)
    await api.client.completions.create(model=MODEL, prompt="x", max_tokens=4)
    text = (await api.http.get("/metrics")).text
    for name in (
        'vllm:num_requests_running{model_name="tiny"} 0.0',
        'vllm:num_requests_waiting{model_name="tiny"} 0.0',
        'vllm:time_to_first_token_seconds_count{model_name="tiny"} 1.0',
        'vllm:inter_token_latency_seconds_count{model_name="tiny"} 3.0',
        'vllm:e2e_request_latency_seconds_count{model_name="tiny"} 1.0',
        'firstlight_answers_total{route="/v1/completions",status="200"} 1.0',
    ):
        assert name in text

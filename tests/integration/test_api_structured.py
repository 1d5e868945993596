"""Structured answers, tools, and the best of several, as the official client sees them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from api_model import ids_of, model_text, text_files
from api_stand import Stand, stand
from fake_engine import FakeEngine, TokenAt, scripted
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel
from tokenizers import Tokenizer

from api.text.model_text import ModelText
from firstlight.database.connection import Database

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
# As Qwen and Hermes have it.
HERMES = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>{"name": …, "arguments": …}</tool_call><|end|>{% endif %}'
    "{% for message in messages %}<|{{ 'user' if message.role == 'tool' else message.role }}|>"
    "{{ message.content }}{% for call in message.tool_calls %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Mistral has it: its marker is a special token.
MISTRAL = HERMES.replace("<tool_call>", "[TOOL_CALLS]").replace("</tool_call>", "")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
CALLS = (
    'One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path) as made:
        yield made


def with_template(template: str, *special: str) -> dict[str, bytes]:
    tokenizer = Tokenizer.from_str(text_files()["tokenizer.json"].decode())
    tokenizer.add_special_tokens(list(special))
    return {
        **text_files(),
        "config.json": b'{"max_position_embeddings": 2048}',
        "chat_template.jinja": template.encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }


async def warm(
    api: Stand, template: str = HERMES, *special: str, token_at: TokenAt | None = None, name: str = "tiny"
) -> FakeEngine:
    await api.deploy(name)
    record = await api.services.catalog.find(name)
    api.store.files[record.checkpoint_id] = with_template(template, *special)
    return await api.warm(name, token_at=token_at)


def prompt_of(engine: FakeEngine) -> str:
    return model_text().decode(list(engine.requests[-1].prompt_token_ids))


def accepts(grammar: str, text: str, files: Callable[[], dict[str, bytes]] = text_files) -> bool:
    """Does the grammar that an engine was given allow this text, and then the end?"""
    made = ModelText(files())
    written = files()["tokenizer.json"].decode()
    matcher = LLMatcher(LLTokenizer(written, n_vocab=400, eos_token=made.end_token_ids[0]), grammar)
    ids = made.encode(text, add_special_tokens=False)
    taken = matcher.try_consume_tokens(ids)
    assert not matcher.is_error() or taken < len(ids), matcher.get_error()
    return taken == len(ids) and bool(matcher.is_accepting())


class Animal(BaseModel):
    kind: str
    legs: int


async def test_a_schema_reaches_the_engine_as_a_grammar_and_the_client_parses_the_answer(api: Stand) -> None:
    engine = await api.warm("tiny", token_at=scripted(ids_of('{"kind": "fox", "legs": 4}')))
    # The official client makes the schema from the class, and the object from the answer.
    answer = await api.client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Animal)
    assert answer.choices[0].message.parsed == Animal(kind="fox", legs=4)
    grammar = engine.requests[0].grammar
    assert accepts(grammar, '{"kind":"fox","legs":4}') and accepts(grammar, '{\n  "kind": "", "legs": -1}')
    for other in ('{"kind":"fox"}', '{"kind":"fox","legs":"4"}', "fox", '{"kind":"fox","legs":4,"tail":1}'):
        assert not accepts(grammar, other)
    anything = await api.client.chat.completions.create(
        model="tiny", messages=HELLO, response_format={"type": "json_object"}, n=2
    )
    assert len(anything.choices) == 2
    # Each choice is a stream of its own, and is held to the grammar by itself.
    assert [accepts(request.grammar, '{"a": [1, {}]}') for request in engine.requests[1:]] == [True, True]
    assert not accepts(engine.requests[1].grammar, "[1]")
    await api.client.chat.completions.create(model="tiny", messages=HELLO, response_format={"type": "text"})
    assert engine.requests[-1].grammar == ""


async def test_a_grammar_stays_with_its_stream_on_another_engine(api: Stand) -> None:
    words = '{"kind": "fox", "legs": 4}'
    first = await api.warm("tiny", token_at=scripted(ids_of(words)), max_instances=2)
    second = await api.warm("tiny", token_at=scripted(ids_of(words)))
    first.dies_at = second.dies_at = 5
    shape = {"type": "json_schema", "json_schema": {"name": "animal", "schema": Animal.model_json_schema()}}

    def go_on(engine: FakeEngine) -> None:
        other = second if engine is first else first
        other.dies_at = None

    first.on_request = second.on_request = go_on
    answer = await api.client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        response_format=shape,  # type: ignore[arg-type]
    )
    assert answer.choices[0].message.content == words
    requests = [*first.requests, *second.requests]
    assert len(requests) == 2 and len({request.grammar for request in requests}) == 1
    assert sorted(len(request.resumed_token_ids) for request in requests) == [0, 5]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a"},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"type": "array", "uniqueItems": True},
        {"type": "integer", "minimum": 3, "maximum": 2},
    ],
)
async def test_a_schema_that_cannot_be_followed_is_refused_before_anything_runs(
    api: Stand, schema: dict[str, Any]
) -> None:
    engine = await warm(api)
    shape: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.chat.completions.create(model="tiny", messages=HELLO, response_format=shape)
    assert caught.value.param == "response_format.json_schema.schema"
    tool: Any = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"x": schema}, "required": ["x"]}},
    }
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.chat.completions.create(
            model="tiny", messages=HELLO, tools=[tool], tool_choice="required"
        )
    assert caught.value.param == "tools[0].function.parameters"
    assert engine.requests == []


async def test_tools_are_told_to_the_model_and_its_calls_to_the_client(api: Stand) -> None:
    engine = await warm(api, token_at=scripted(ids_of(CALLS)))
    answer = await api.client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        tools=[WEATHER, TIME],  # type: ignore[list-item]
        max_tokens=300,
    )
    assert '"name": "weather"' in prompt_of(engine) and '"name": "time"' in prompt_of(engine)
    assert engine.requests[0].grammar == ""
    message = answer.choices[0].message
    assert (answer.choices[0].finish_reason, message.content) == ("tool_calls", "One moment.")
    calls: list[Any] = message.tool_calls or []
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert json.loads(calls[0].function.arguments) == {"city": "Köln", "days": 2}
    assert len({call.id for call in calls}) == 2
    # What tools answered goes back to the model, beside its own calls.
    conversation: list[Any] = [
        *HELLO,
        message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": f"for {call.id}"} for call in calls),
    ]
    await api.client.chat.completions.create(model="tiny", messages=conversation, tools=[WEATHER, TIME])  # type: ignore[list-item]
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}' in prompt_of(engine)
    assert all(f"for {call.id}" in prompt_of(engine) for call in calls)


async def test_calls_are_streamed_as_they_are_written(api: Stand) -> None:
    await warm(api, token_at=scripted(ids_of(CALLS)))
    async with api.client.chat.completions.stream(
        model="tiny",
        messages=HELLO,
        tools=[WEATHER, TIME],  # type: ignore[list-item]
        max_tokens=300,
    ) as stream:
        pieces = [event.arguments_delta async for event in stream if event.type.endswith("arguments.delta")]  # type: ignore[union-attr]
        final = await stream.get_final_completion()
    choice = final.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One moment.")
    calls: list[Any] = choice.message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Köln", "days": 2}),
        ("time", {}),
    ]
    assert len(pieces) > 5, "arguments came at once"


async def test_a_model_that_calls_nothing_just_answers(api: Stand) -> None:
    engine = await warm(api, token_at=scripted(ids_of("It is <b>late</b>.")))
    for choice in ("auto", "none"):
        answer = await api.client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            tools=[TIME],  # type: ignore[list-item]
            tool_choice=choice,  # type: ignore[arg-type]
        )
        assert answer.choices[0].message.content == "It is <b>late</b>."
        assert (answer.choices[0].finish_reason, answer.choices[0].message.tool_calls) == ("stop", None)
    assert '"name": "time"' not in prompt_of(engine), "tool_choice none tells the model of no tool"


async def test_a_call_that_is_required_or_named_is_forced_by_a_grammar(api: Stand) -> None:
    weather = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
    time = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    engine = await warm(api, token_at=scripted(ids_of(weather)))

    async def ask(**how: Any) -> str:
        answer = await api.client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            tools=[WEATHER, TIME],  # type: ignore[list-item]
            **how,
        )
        grammar = engine.requests[-1].grammar
        assert not accepts(grammar, "Hello") and not accepts(grammar, weather.replace("weather", "whether"))
        assert not accepts(grammar, weather.replace('"Bonn"', "5")) and accepts(grammar, weather)
        assert answer.choices[0].message.tool_calls
        return str(answer.choices[0].finish_reason)

    assert await ask(tool_choice="required") == "tool_calls"
    grammar = engine.requests[-1].grammar
    assert accepts(grammar, time) and accepts(grammar, f"{weather}\n{time}")
    assert await ask(tool_choice="required", parallel_tool_calls=False) == "tool_calls"
    assert not accepts(engine.requests[-1].grammar, f"{weather}\n{time}")
    named = {"type": "function", "function": {"name": "weather"}}
    assert await ask(tool_choice=named) == "stop"
    assert not accepts(engine.requests[-1].grammar, time)
    for wrong, param in (("f", "tool_choice"), (None, "tools[2].function.name")):
        tools = [WEATHER, TIME] if wrong else [WEATHER, TIME, WEATHER]
        choice = {"type": "function", "function": {"name": wrong or "time"}}
        body = {"model": "tiny", "messages": HELLO, "tools": tools, "tool_choice": choice}
        refused = await api.http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_a_marker_that_is_a_special_token_is_seen_and_forced(api: Stand) -> None:
    special = "[TOOL_CALLS]"
    text = ModelText(with_template(MISTRAL, special))
    call = f'{special} [{{"name": "time", "arguments": {{}}}}]'
    token_at = scripted(text.encode(call, add_special_tokens=False))
    engine = await warm(api, MISTRAL, special, token_at=token_at)
    for choice, reason in (("auto", "tool_calls"), ("required", "tool_calls")):
        answer = await api.client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            tools=[TIME],  # type: ignore[list-item]
            tool_choice=choice,  # type: ignore[arg-type]
        )
        calls: list[Any] = answer.choices[0].message.tool_calls or []
        assert [(one.function.name, one.function.arguments) for one in calls] == [("time", "{}")]
        assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == (reason, None)
        assert len(calls[0].id) == 9, "Mistral's templates refuse any other"
    assert accepts(engine.requests[-1].grammar, call, lambda: with_template(MISTRAL, special))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "no tools"),
        (HERMES.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>"), "notation"),
        (HERMES + "{# <function=name> #}", "notation"),
    ],
)
async def test_a_model_without_tools_refuses_them_clearly(api: Stand, template: str, words: str) -> None:
    engine = await warm(api, template)
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        await api.client.chat.completions.create(model="tiny", messages=HELLO, tools=[TIME])  # type: ignore[list-item]
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")
    assert engine.requests == []


async def test_the_best_of_several_are_the_likeliest(api: Stand) -> None:
    engine = await api.warm("tiny")
    # Choice i is likelier the closer i is to 3.
    engine.logprob_at = lambda seed, position: -abs(3.0 - (seed - 10)) - position / 100
    answer = await api.client.completions.create(
        model="tiny", prompt="x", n=2, best_of=5, seed=10, max_tokens=4
    )
    every = await api.client.completions.create(model="tiny", prompt="x", n=5, seed=10, max_tokens=4)
    texts = [choice.text for choice in every.choices]
    best = [choice.text for choice in answer.choices]
    assert best[0] == texts[3] and best[1] in (texts[2], texts[4])
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.logprobs for choice in answer.choices] == [None, None]
    assert answer.usage is not None and answer.usage.completion_tokens == 20, "all that was computed counts"
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"best_of": 21}):
        refused = await api.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")

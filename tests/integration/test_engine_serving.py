"""One real engine process on SmolLM2: what a client of its Inference service sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from firstlight.domain.errors import ContextTooLong, InvalidInput, StaleEpoch
from tests.integration.engine_fixtures import (
    EngineWorld,
    chat_ids,
    collect,
    engine_world,
    generate_request,
    sampled,
    text_of,
    tokens_of,
)

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea, the wind and a lighthouse.",
    "What is 2+2?",
    "Say hello.",
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineWorld]:
    async with engine_world(tmp_path_factory.mktemp("engine")) as built:
        yield built


async def test_it_answers_sensibly(world: EngineWorld) -> None:
    chunks = await collect(world.client, generate_request(chat_ids(QUESTIONS[0]), max_tokens=24))
    assert "Paris" in text_of(tokens_of(chunks))
    assert chunks[-1].finish_reason == "stop"
    assert [chunk.position for chunk in chunks[:-1]] == list(range(len(chunks) - 1))
    assert chunks[0].prefill_s > 0


async def test_neighbours_change_nothing(world: EngineWorld) -> None:
    requests = [
        generate_request(chat_ids(question), max_tokens=12, sampling=sampled(index) if index % 2 else None)
        for index, question in enumerate(QUESTIONS)
    ]
    alone = [tokens_of(await collect(world.client, request)) for request in requests]
    together = await asyncio.gather(*(collect(world.client, request) for request in requests))
    assert [tokens_of(chunks) for chunks in together] == alone


async def test_a_sampled_stream_is_its_seed(world: EngineWorld) -> None:
    prompt = chat_ids("Tell me a story.")
    first, again, other = [
        tokens_of(
            await collect(world.client, generate_request(prompt, max_tokens=16, sampling=sampled(seed)))
        )
        for seed in (11, 11, 12)
    ]
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", [None, 5])
async def test_resuming_goes_on_exactly(world: EngineWorld, seed: int | None) -> None:
    prompt = chat_ids("Tell me about mountains.")
    sampling = None if seed is None else sampled(seed, repetition_penalty=1.1)
    whole = tokens_of(await collect(world.client, generate_request(prompt, max_tokens=14, sampling=sampling)))
    chunks = await collect(
        world.client,
        generate_request(prompt, max_tokens=14, sampling=sampling, resumed_token_ids=whole[:9]),
    )
    assert tokens_of(chunks) == whole[9:]
    assert chunks[0].position == 9
    assert chunks[-1].finish_reason == "length"


async def test_leaving_frees_the_slot(world: EngineWorld) -> None:
    request = generate_request(chat_ids("Count to a million."), max_tokens=4000, ignore_eos=True)
    async with aclosing(world.client.generate(request)) as stream:
        async for _ in stream:
            break
    async with asyncio.timeout(10):
        while (status := await world.client.status()).running:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    assert status.waiting == 0
    assert (await world.client.wait_idle(epoch=7, idle_s=0.05)).idle_s >= 0.05


async def test_only_as_many_run_as_there_are_slots(world: EngineWorld) -> None:
    requests = [generate_request(chat_ids("Go on."), max_tokens=6, ignore_eos=True) for _ in range(10)]
    streams = [asyncio.ensure_future(collect(world.client, request)) for request in requests]
    most = 0
    while not all(stream.done() for stream in streams):
        most = max(most, (await world.client.status()).running)
        await asyncio.sleep(0.01)
    assert most == 8
    assert [len(tokens_of(await stream)) for stream in streams] == [6] * 10


async def test_logprobs_and_stop_tokens(world: EngineWorld) -> None:
    prompt = chat_ids(QUESTIONS[0])
    request = generate_request(prompt, max_tokens=6, logprobs=True, top_logprobs=3)
    chunks = await collect(world.client, request)
    for chunk in chunks[:-1]:
        assert chunk.logprob <= 0
        assert chunk.top_logprobs[0].token_id == chunk.token_id
        assert len(chunk.top_logprobs) == 3
    third = chunks[2].token_id
    stopped = await collect(world.client, generate_request(prompt, max_tokens=6, stop_token_ids=[third]))
    assert tokens_of(stopped) == tokens_of(chunks)[:2]
    assert stopped[-1].finish_reason == "stop"


async def test_wrong_requests_are_told_so(world: EngineWorld) -> None:
    with pytest.raises(ContextTooLong):
        await collect(world.client, generate_request([1] * 100, max_tokens=9000))
    with pytest.raises(InvalidInput):
        await collect(world.client, generate_request([10**6], max_tokens=1))
    with pytest.raises(InvalidInput):
        await collect(world.client, generate_request([], max_tokens=1))
    for epoch in (6, 8):
        with pytest.raises(StaleEpoch):
            await collect(world.client, generate_request([1], max_tokens=1, epoch=epoch))
    assert (await world.client.status()).running == 0

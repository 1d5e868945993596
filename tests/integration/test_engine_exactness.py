"""Same prompt, same settings, same bits: alone, among others, and resumed from tokens alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpu_worker.engine.interface import EngineRequest, Token
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.sampling import Sampling
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from native_loader import load_state_dict
from tests.integration.engine_fixtures import smollm2_checkpoint
from tests.integration.tiny_models import write_tiny_model

TOKENS = 40
CHUNK = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["smollm2", "llama", "qwen2", "gemma3_text"])
def skeleton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    if request.param == "smollm2":
        directory = smollm2_checkpoint()
        tensors = load_state_dict(directory)
    else:
        directory = Path(write_tiny_model(tmp_path_factory.mktemp("tiny"), request.param))
        tensors = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    built = build_skeleton(directory, dtype=torch.float32)
    built.bind(tensors)
    return built


def request(number: int, sampling: Sampling) -> EngineRequest:
    return EngineRequest(
        request_id=f"r{number}",
        prompt_token_ids=tuple((7 * number + step) % 90 + 3 for step in range(CHUNK + 5 * number)),
        max_tokens=TOKENS,
        ignore_eos=True,
        sampling=sampling,
        logprobs=True,
    )


async def tokens_of(engine: LocalEngine, wanted: EngineRequest) -> list[tuple[int, float | None]]:
    events = [event async for event in engine.start(wanted)]
    return [(event.token_id, event.logprob) for event in events if isinstance(event, Token)]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, seed=3)], ids=["greedy", "sampled"]
)
async def test_bits_depend_on_nothing_but_the_request(skeleton: Skeleton, sampling: Sampling) -> None:
    loop = DecodeLoop(
        skeleton,
        device="cpu",
        max_concurrency=8,
        max_waiting=8,
        context_length=256,
        chunk_tokens=CHUNK,
        on_crash=lambda: None,
    )
    engine = LocalEngine(loop, max_concurrency=8, context_length=256)
    try:
        wanted = request(1, sampling)
        alone = await tokens_of(engine, wanted)
        others = [tokens_of(engine, request(number, Sampling())) for number in (2, 3, 4)]
        among = (await asyncio.gather(tokens_of(engine, wanted), *others))[0]
        assert among == alone
        # All that a journal holds: the cache is computed anew, in other passes than the first time.
        for given in (1, TOKENS // 2, TOKENS - 1):
            again = replace(wanted, resumed_token_ids=tuple(token for token, _ in alone[:given]))
            assert await tokens_of(engine, again) == alone[given:]
    finally:
        engine.close()

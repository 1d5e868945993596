"""Requests that move in: a pass ahead of them, and one pass for all that come together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from firstlight.rpc.engine_pb2 import GenerateRequest, SessionPart
from gpu_worker.engine import loop as decode_loop
from gpu_worker.engine import sessions as session_book
from gpu_worker.engine.interface import EngineRequest, Finished
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.requests import Rebuild
from gpu_worker.engine.sampling import Sampling
from gpu_worker.engine.skeleton import build_skeleton
from tests.integration.tiny_models import write_tiny_model

PROMPT = tuple(range(3, 12))


class Watched(DecodeLoop):
    """Tells who was in each pass."""

    # Any: a plan's parts, of several kinds.
    def _pass(self, plan: Sequence[tuple[Any, int]]) -> None:
        self.__dict__.setdefault("passes", []).append([part.work for part, _ in plan])
        super()._pass(plan)

    @property
    def passes(self) -> list[list[object]]:
        found: list[list[object]] = self.__dict__.get("passes", [])
        return found


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Watched]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    directory = Path(write_tiny_model(tmp_path, "llama"))
    skeleton = build_skeleton(directory, dtype=torch.float32)
    skeleton.bind(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict())
    watched = Watched(
        skeleton,
        device="cpu",
        max_concurrency=4,
        max_waiting=4,
        context_length=128,
        chunk_tokens=64,
        on_crash=lambda: None,
    )
    try:
        yield watched
    finally:
        watched.close()
        torch.set_num_threads(threads)


async def round_of(session_id: str, *, recompute: bool = False) -> AsyncIterator[SessionPart]:
    yield SessionPart(
        session_id=session_id,
        request=GenerateRequest(request_id=session_id),
        token_ids=PROMPT,
        prompt_tokens=len(PROMPT),
        recompute=recompute,
    )


async def answered(engine: LocalEngine, session_id: str, *, after_s: float = 0.0) -> None:
    await asyncio.sleep(after_s)
    request = EngineRequest(
        request_id=session_id,
        prompt_token_ids=PROMPT,
        max_tokens=4,
        ignore_eos=True,
        sampling=Sampling(),
        session_id=session_id,
    )
    *_, last = [event async for event in engine.start(request)]
    assert last == Finished("length")


async def until_passed(loop: Watched, count: int) -> None:
    async with asyncio.timeout(20):
        while len(loop.passes) < count:  # noqa: ASYNC110 - by a thread
            await asyncio.sleep(0.001)


async def test_an_engine_at_rest_computes_before_they_come(
    loop: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_loop, "WARM_FOR_S", 3600.0)
    engine = LocalEngine(loop, max_concurrency=4, context_length=128)
    await engine.receive(round_of("a"))
    await until_passed(loop, 1)
    await engine.receive(round_of("b"))
    await answered(engine, "a")
    kinds = [type(work) for parts in loop.passes for work in parts]
    assert kinds[0] is Rebuild and kinds.count(Rebuild) == 1
    assert loop.load().running == 0


async def test_those_that_come_together_share_their_first_pass(
    loop: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_book, "TOGETHER_WITHIN_S", 20.0)
    monkeypatch.setattr(session_book, "MOVING_WITHIN_S", 60.0)
    engine = LocalEngine(loop, max_concurrency=4, context_length=128)
    names = ["a", "b", "c"]
    for name in names:
        await engine.receive(round_of(name))
    await asyncio.gather(*(answered(engine, name, after_s=0.05 * place) for place, name in enumerate(names)))
    first = next(parts for parts in loop.passes if not isinstance(parts[0], Rebuild))
    assert len(first) == 3
    # Nobody is expected any more.
    await engine.receive(round_of("d"))
    async with asyncio.timeout(10):
        await answered(engine, "d")


@pytest.mark.parametrize("moving_within_s", [60.0, 0.0])
async def test_one_that_does_not_come_is_hardly_waited_for(
    loop: Watched, monkeypatch: pytest.MonkeyPatch, moving_within_s: float
) -> None:
    monkeypatch.setattr(session_book, "MOVING_WITHIN_S", moving_within_s)
    # Who moves no more is not waited for at all.
    monkeypatch.setattr(session_book, "TOGETHER_WITHIN_S", 0.2 if moving_within_s else 3600.0)
    engine = LocalEngine(loop, max_concurrency=4, context_length=128)
    for name in ("a", "b"):
        await engine.receive(round_of(name, recompute=True))
    began_s = time.monotonic()
    async with asyncio.timeout(20):
        await answered(engine, "a")
    if moving_within_s:
        assert time.monotonic() - began_s >= 0.2
    assert len(engine._sessions) == 1

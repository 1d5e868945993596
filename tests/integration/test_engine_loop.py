"""The decode loop in this process, on a random model: bounds, failures and endings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from firstlight.domain.errors import EngineError, EngineGone, QueueFull
from gpu_worker.engine.interface import EngineRequest, Event, Finished, Token
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from tests.integration.tiny_models import write_tiny_model

POISON = 13


class FragileSkeleton(Skeleton):
    """Fails as a GPU out of memory does, on any pass that holds the token POISON."""

    def logits(self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scores = super().logits(token_ids, positions, rows)
        if POISON in token_ids.tolist():
            raise torch.OutOfMemoryError("no memory left for this one")
        return scores


class BrokenSkeleton(Skeleton):
    """Has a bug."""

    def logits(self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        raise AttributeError("a bug")


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")
    built = build_skeleton(Path(directory), dtype=torch.float32)
    built.bind(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict())
    return built


def of_kind(skeleton: Skeleton, kind: type[Skeleton]) -> Skeleton:
    other = kind.__new__(kind)
    other.__dict__.update(skeleton.__dict__)
    return other


@contextmanager
def engine_on(
    skeleton: Skeleton, *, slots: int = 4, waiting: int = 4, crashed: threading.Event | None = None
) -> Iterator[LocalEngine]:
    loop = DecodeLoop(
        skeleton,
        device="cpu",
        max_concurrency=slots,
        max_waiting=waiting,
        context_length=128,
        chunk_tokens=8,
        on_crash=(crashed or threading.Event()).set,
    )
    engine = LocalEngine(loop, max_concurrency=slots, context_length=128)
    try:
        yield engine
    finally:
        engine.close()


def request(*prompt: int, max_tokens: int = 10) -> EngineRequest:
    return EngineRequest(request_id="r", prompt_token_ids=prompt, max_tokens=max_tokens, ignore_eos=True)


async def run(engine: LocalEngine, wanted: EngineRequest) -> list[Event]:
    return [event async for event in engine.start(wanted)]


async def test_one_requests_failure_is_its_own(skeleton: Skeleton) -> None:
    with engine_on(skeleton) as engine:
        expected = await run(engine, request(5, 6, 7))
    with engine_on(of_kind(skeleton, FragileSkeleton)) as engine:
        outcomes = await asyncio.gather(
            run(engine, request(5, 6, 7)),
            run(engine, request(5, POISON, 7)),
            run(engine, request(5, 6, 7)),
            return_exceptions=True,
        )
        assert (await run(engine, request(5, 6, 7)))[-1] == Finished("length")
    assert isinstance(outcomes[1], EngineError)
    assert ids(outcomes[0]) == ids(outcomes[2]) == ids(expected)


def ids(events: object) -> list[int]:
    assert isinstance(events, list)
    return [event.token_id for event in events if isinstance(event, Token)]


async def test_the_waiting_room_is_bounded(skeleton: Skeleton) -> None:
    with engine_on(skeleton, slots=1, waiting=1) as engine:
        first = engine.start(request(1, 2, max_tokens=120))
        await anext(first)
        second = asyncio.ensure_future(run(engine, request(3, 4)))
        async with asyncio.timeout(5):
            while not engine.load().waiting:  # noqa: ASYNC110 - the loop's own thread
                await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await run(engine, request(5, 6))
        await first.aclose()
        events = await second
    assert len(ids(events)) == 10
    assert isinstance(events[0], Token) and events[0].queue_s > 0


async def test_a_resumed_request_that_is_full_just_ends(skeleton: Skeleton) -> None:
    with engine_on(skeleton) as engine:
        full = EngineRequest(request_id="r", prompt_token_ids=(1,), resumed_token_ids=(2, 3), max_tokens=2)
        assert await run(engine, full) == [Finished("length")]


async def test_closing_ends_every_stream(skeleton: Skeleton) -> None:
    with engine_on(skeleton, slots=1) as engine:
        streams = [engine.start(request(1, 2, max_tokens=120)) for _ in range(2)]
        async with aclosing(streams[0]), aclosing(streams[1]):
            await anext(streams[0])
            waiting = asyncio.ensure_future(anext(streams[1]))
            async with asyncio.timeout(5):
                while not engine.load().waiting:  # noqa: ASYNC110 - the loop's own thread
                    await asyncio.sleep(0)
            engine.close()
            with pytest.raises(EngineGone):
                async for _ in streams[0]:
                    pass
            with pytest.raises(EngineGone):
                await waiting
        with pytest.raises(EngineGone):
            await run(engine, request(1))


async def test_a_bug_ends_the_engine_and_hangs_nobody(skeleton: Skeleton) -> None:
    crashed = threading.Event()
    with engine_on(of_kind(skeleton, BrokenSkeleton), crashed=crashed) as engine, pytest.raises(EngineGone):
        await asyncio.wait_for(run(engine, request(1, 2)), 5)
    assert crashed.is_set()


async def test_a_long_prompt_does_not_stop_running_streams(skeleton: Skeleton) -> None:
    with engine_on(skeleton) as engine:
        seen: list[str] = []

        async def follow(name: str, wanted: EngineRequest) -> None:
            async for event in engine.start(wanted):
                if isinstance(event, Token):
                    seen.append(name)

        running = asyncio.ensure_future(follow("running", request(1, max_tokens=120)))
        async with asyncio.timeout(5):
            while not seen:  # noqa: ASYNC110 - the loop's own thread
                await asyncio.sleep(0)
        before = len(seen)
        await follow("long", request(*[5] * 80, max_tokens=1))
        # Ten chunks of eight: a token of the other stream beside each of them.
        assert seen[before:].count("running") >= 9
        running.cancel()

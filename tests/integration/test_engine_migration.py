"""Requests that move between two decode loops, on a random model: no token lost, repeated or changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from firstlight.domain.errors import EngineGone
from firstlight.domain.migration import Link, Transfer
from firstlight.rpc.engine_pb2 import SessionPart
from gpu_worker.engine.interface import (
    Destination,
    EngineRequest,
    Event,
    Finished,
    Moved,
    MoveEvent,
    MoveOrder,
    Receiver,
    Token,
)
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.sampling import Sampling
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from tests.integration.tiny_models import write_tiny_model

CONTEXT = 256
THERE = Destination(instance_id="there", endpoint="nowhere:1", epoch=2)
ORDER = MoveOrder(migration_id="migration-1", destination=THERE, delta_tokens=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As engines run on a CPU; and two loops with several threads each would spin against each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def skeleton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    directory = Path(write_tiny_model(tmp_path_factory.mktemp("tiny"), request.param))
    built = build_skeleton(directory, dtype=torch.float32)
    built.bind(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict())
    return built


@contextmanager
def engine_on(skeleton: Skeleton, *, slots: int = 8) -> Iterator[LocalEngine]:
    loop = DecodeLoop(
        skeleton,
        device="cpu",
        max_concurrency=slots,
        max_waiting=8,
        context_length=CONTEXT,
        chunk_tokens=8,
        on_crash=lambda: None,
    )
    engine = LocalEngine(loop, max_concurrency=slots, context_length=CONTEXT)
    try:
        yield engine
    finally:
        engine.close()


class Beside(Receiver):
    """The other engine, in this process; `fail_at` makes that round (from 1) break in its middle."""

    def __init__(self, engine: LocalEngine, *, fail_at: int | None = None) -> None:
        self.engine = engine
        self.rounds = 0
        self.dropped: list[str] = []
        self._fail_at = fail_at
        self.clients: list[Client] = []

    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        self.rounds += 1
        if self.rounds == self._fail_at:
            await anext(parts)
            raise EngineGone("the destination died")
        before = [len(client.tokens) for client in self.clients]
        cached = await self.engine.receive(parts)
        if self.rounds == 1 and self.clients:
            # The source has gone on meanwhile, however fast this machine copies: there is another round.
            async with asyncio.timeout(20):
                while [len(client.tokens) for client in self.clients] == before:  # noqa: ASYNC110 - a thread
                    await asyncio.sleep(0.001)
        return cached

    async def drop(self, session_id: str) -> None:
        self.dropped.append(session_id)
        self.engine.drop(session_id)


GREEDY, SAMPLED = Sampling(), Sampling(temperature=1.0, top_p=0.95, seed=11)


def wanted(number: int, *, max_tokens: int = 120, sampling: Sampling = GREEDY) -> EngineRequest:
    prompt = tuple((7 * number + step) % 90 + 3 for step in range(5 + 9 * number))
    return EngineRequest(
        request_id=f"r{number}",
        prompt_token_ids=prompt,
        max_tokens=max_tokens,
        ignore_eos=True,
        sampling=sampling,
        logprobs=True,
    )


class Client:
    """What the API does: keeps the journal, follows a request to where it moved."""

    def __init__(self, source: LocalEngine, destination: LocalEngine, request: EngineRequest) -> None:
        self.request = request
        self.tokens: list[Token] = []
        self.moved: Moved | None = None
        self.has_begun = asyncio.Event()
        self._engines = source, destination

    async def run(self) -> list[int]:
        ending = await self._follow(self._engines[0], self.request)
        if isinstance(ending, Moved):
            self.moved = ending
            assert ending.position == len(self.tokens)
            given = tuple(token.token_id for token in self.tokens)
            again = replace(self.request, resumed_token_ids=given, session_id=ending.session_id)
            ending = await self._follow(self._engines[1], again)
        assert ending == Finished("length")
        assert [token.position for token in self.tokens] == list(range(len(self.tokens)))
        return [token.token_id for token in self.tokens]

    async def _follow(self, engine: LocalEngine, request: EngineRequest) -> Event:
        async with aclosing(engine.start(request)) as stream:
            async for event in stream:
                if not isinstance(event, Token):
                    return event
                self.tokens.append(event)
                if len(self.tokens) >= 3:
                    self.has_begun.set()
        raise AssertionError("a stream ended without a word")


async def alone(skeleton: Skeleton, requests: list[EngineRequest]) -> list[list[int]]:
    """The same requests, undisturbed."""
    with engine_on(skeleton) as engine:
        clients = [Client(engine, engine, request) for request in requests]
        return list(await asyncio.gather(*(client.run() for client in clients)))


async def migrate(
    skeleton: Skeleton,
    requests: list[EngineRequest],
    order: MoveOrder = ORDER,
    *,
    receiver: Callable[[LocalEngine], Beside] = Beside,
    slots: int = 8,
) -> tuple[list[Client], list[list[int]], list[MoveEvent]]:
    with engine_on(skeleton, slots=slots) as source, engine_on(skeleton) as destination:
        clients = [Client(source, destination, request) for request in requests]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        for client in clients[:slots]:
            await client.has_begun.wait()
        there = receiver(destination)
        there.clients = clients
        events = [event async for event in source.move_out(order, there)]
        async with asyncio.timeout(60):
            tokens = list(await asyncio.gather(*tasks))
        assert not destination._sessions and not source._sessions
        assert source.load().running == destination.load().running == 0
        return clients, tokens, events


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("transfer", list(Transfer))
async def test_every_stream_goes_on_as_if_nothing_had_happened(
    skeleton: Skeleton, sampling: Sampling, transfer: Transfer
) -> None:
    requests = [wanted(number, sampling=sampling) for number in range(4)]
    clients, tokens, events = await migrate(skeleton, requests, replace(ORDER, transfer=transfer))
    assert tokens == await alone(skeleton, requests)
    assert all(client.moved is not None and client.moved.session_id for client in clients)
    assert sum(event.kind == "handed_over" for event in events) == len(requests)
    assert events[-1].left == 0


@pytest.mark.parametrize(("bandwidth", "expected"), [(1e12, "exact"), (1.0, "tokens")])
async def test_a_fast_move_takes_the_sooner_way(skeleton: Skeleton, bandwidth: float, expected: str) -> None:
    link = Link(bandwidth_bytes_per_s=bandwidth, prefill_tokens_per_s=1000.0)
    order = replace(ORDER, transfer=Transfer.FAST, link=link)
    _, tokens, events = await migrate(skeleton, [wanted(1)], order)
    assert tokens == await alone(skeleton, [wanted(1)])
    assert {event.transfer for event in events} == {expected}


async def test_the_cache_arrives_bit_for_bit(skeleton: Skeleton) -> None:
    """Log-probabilities behind the seam are those of the undisturbed stream, to the last bit."""
    request = wanted(2)
    clients, _, _ = await migrate(skeleton, [request])
    with engine_on(skeleton) as engine:
        undisturbed = Client(engine, engine, request)
        await undisturbed.run()
    assert clients[0].moved is not None
    assert [token.logprob for token in clients[0].tokens] == [token.logprob for token in undisturbed.tokens]


async def test_few_tokens_are_left_for_the_pause(skeleton: Skeleton) -> None:
    _, _, events = await migrate(skeleton, [wanted(1)])
    rounds = [event for event in events if event.kind == "round"]
    assert len(rounds) >= 2
    assert rounds[0].tokens > ORDER.delta_tokens >= rounds[-1].tokens - 2
    assert rounds[-1].sent_bytes < rounds[0].sent_bytes


async def test_a_request_that_waits_for_a_slot_moves_too(skeleton: Skeleton) -> None:
    requests = [wanted(number) for number in range(3)]
    clients, tokens, _ = await migrate(skeleton, requests, slots=1)
    assert tokens == await alone(skeleton, requests)
    assert clients[2].moved == Moved(destination=THERE, session_id="", position=0)


@pytest.mark.parametrize("fail_at", [1, 2])
async def test_a_destination_that_dies_leaves_the_request_at_its_source(
    skeleton: Skeleton, fail_at: int
) -> None:
    request = wanted(1)
    clients, tokens, events = await migrate(
        skeleton, [request], receiver=lambda engine: Beside(engine, fail_at=fail_at)
    )
    assert events[-1].kind == "failed" and "died" in events[-1].error
    assert clients[0].moved is None
    assert tokens == await alone(skeleton, [request])


async def test_one_that_ends_by_itself_simply_ends(skeleton: Skeleton) -> None:
    class Slow(Beside):
        async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
            cached = await super().receive(parts)
            await ended.wait()
            return cached

    ended = asyncio.Event()
    with engine_on(skeleton) as source, engine_on(skeleton) as destination:
        client = Client(source, destination, wanted(1, max_tokens=20))
        running = asyncio.create_task(client.run())
        running.add_done_callback(lambda task: ended.set())
        await client.has_begun.wait()
        receiver = Slow(destination)
        events = [event async for event in source.move_out(ORDER, receiver)]
        assert len(await running) == 20
    assert events[-1].kind == "ended" and receiver.dropped
    assert not destination._sessions


async def test_a_client_that_hangs_up_meanwhile_leaves_nothing(skeleton: Skeleton) -> None:
    with engine_on(skeleton) as source, engine_on(skeleton) as destination:
        client = Client(source, destination, wanted(1, max_tokens=200))
        running = asyncio.create_task(client.run())
        await client.has_begun.wait()
        moving = aiter(source.move_out(ORDER, Beside(destination)))
        first = await anext(moving)
        running.cancel()
        kinds = [first.kind] + [event.kind async for event in moving]
        assert kinds[-1] in ("ended", "handed_over")
        async with asyncio.timeout(5):
            while source.load().running:  # noqa: ASYNC110 - the loop's own thread drops it before its next pass
                await asyncio.sleep(0)
    if kinds[-1] == "ended":
        assert not destination._sessions


async def test_a_session_of_other_tokens_is_not_used(skeleton: Skeleton) -> None:
    """Were a cache attached to a request that it was not computed for, its tokens would be wrong."""
    request = wanted(1)
    with engine_on(skeleton) as source, engine_on(skeleton) as destination:
        client = Client(source, destination, request)
        running = asyncio.create_task(client.run())
        await client.has_begun.wait()
        seen: list[str] = []

        class Spy(Beside):
            async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
                async def watched() -> AsyncIterator[SessionPart]:
                    async for part in parts:
                        seen.append(part.session_id)
                        yield part

                return await super().receive(watched())

        other = wanted(2, max_tokens=30)
        receiver = Spy(destination)
        moving = aiter(source.move_out(ORDER, receiver))
        await anext(moving)
        stolen = replace(other, session_id=seen[0])
        got = [event async for event in destination.start(stolen)]
        async for _ in moving:
            pass
        await running
    expected = await alone(skeleton, [other])
    assert [event.token_id for event in got if isinstance(event, Token)] == expected[0]

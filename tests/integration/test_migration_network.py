"""Requests that move over a network that is slow, cut or repeats itself, between two real engine services.

The link between source and destination is a proxy of our own; clients reach both directly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.rate_limited_proxy import RateLimitedProxy
from firstlight.domain.errors import EngineGone, InvalidInput, StaleEpoch
from firstlight.rpc import engine_pb2, engine_pb2_grpc
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from firstlight.rpc.engine_pb2 import GenerateRequest, MigrateOutRequest, MigrationEvent, SessionPart
from firstlight.rpc.server import bind, new_server
from gpu_worker.engine.control import AttachCommand
from gpu_worker.engine.interface import Destination, MoveEvent, MoveOrder, Receiver
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.remote_receiver import remote_receiver
from gpu_worker.engine.service import InferenceService
from gpu_worker.engine.sessions import TIME_TO_LIVE_S
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from gpu_worker.engine.state import EngineState
from tests.integration.tiny_models import write_tiny_model

CONTEXT = 4096
TOKENS = 500
# Keys and values of one token in the small model: 3 layers, 2 heads of 8 float32 each.
TOKEN_BYTES = 3 * 2 * 2 * 8 * 4


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    directory = Path(write_tiny_model(tmp_path_factory.mktemp("tiny"), "llama"))
    built = build_skeleton(directory, dtype=torch.float32)
    built.bind(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict())
    return built


@dataclass(frozen=True, slots=True)
class Served:
    """An engine behind its service. `endpoint` is its own, `epoch` its only one."""

    engine: LocalEngine
    endpoint: str
    epoch: int


@asynccontextmanager
async def served(skeleton: Skeleton, *, epoch: int, slots: int = 4) -> AsyncIterator[Served]:
    loop = DecodeLoop(
        skeleton,
        device="cpu",
        max_concurrency=slots,
        max_waiting=8,
        context_length=CONTEXT,
        chunk_tokens=64,
        on_crash=lambda: None,
    )
    state = EngineState()
    state.attachment = AttachCommand(
        instance_id=f"i-{epoch}", epoch=epoch, model="tiny", checkpoint_id="tiny@1", max_concurrency=slots
    )
    engine = LocalEngine(loop, max_concurrency=slots, context_length=CONTEXT)
    state.become_ready(engine)
    server = new_server()
    engine_pb2_grpc.add_InferenceServicer_to_server(InferenceService(state), server)
    endpoint = bind(server, bind_address="127.0.0.1", port=0)
    await server.start()
    try:
        yield Served(engine, endpoint, epoch)
    finally:
        await server.stop(None)
        engine.close()


@dataclass(slots=True)
class Pair:
    """Source, destination, and the link that what moves must take."""

    source: Served
    destination: Served
    link: RateLimitedProxy
    channels: Channels
    clients: list[Client] = field(default_factory=list)

    @property
    def link_endpoint(self) -> str:
        return self.link.endpoint.removeprefix("http://")

    def order(self, **changes: int) -> MigrateOutRequest:
        named = {
            "epoch": self.source.epoch,
            "migration_id": "migration-1",
            "destination_instance_id": "i-2",
            "destination_endpoint": self.link_endpoint,
            "destination_epoch": self.destination.epoch,
            "delta_tokens": 8,
            **changes,
        }
        return MigrateOutRequest(**named)  # type: ignore[arg-type]

    async def migrate(self, order: MigrateOutRequest | None = None) -> list[MigrationEvent]:
        client = InferenceClient(self.channels, self.source.endpoint)
        return [event async for event in client.migrate_out(order or self.order())]

    async def move_ever_slower(self, order: MoveOrder) -> list[MoveEvent]:
        """As the source's service does it, with an order that the wire has no words for.

        Behind the first round the link hardly carries anything any more.
        """
        async with remote_receiver(order.destination) as receiver:
            slowing = Slowing(receiver, self.link)
            return [event async for event in self.source.engine.move_out(order, slowing)]

    def ask(self, number: int = 1, *, tokens: int = TOKENS) -> Client:
        client = Client(self, number, tokens)
        self.clients.append(client)
        return client

    def is_clean(self) -> bool:
        loads = [side.engine.load() for side in (self.source, self.destination)]
        return all((load.running, load.waiting, load.sessions) == (0, 0, 0) for load in loads)


class Slowing(Receiver):
    """The other engine; once it has a round, the link to it is as good as none."""

    def __init__(self, receiver: Receiver, link: RateLimitedProxy) -> None:
        self._receiver = receiver
        self._link = link

    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        cached = await self._receiver.receive(parts)
        self._link.bytes_per_s = 10.0
        return cached

    async def drop(self, session_id: str) -> None:
        await self._receiver.drop(session_id)


class Client:
    """What the API does: a journal, and following a request over the direct way to where it moved."""

    def __init__(self, pair: Pair, number: int, tokens: int) -> None:
        self.tokens: list[int] = []
        self.at_s: list[float] = []
        self.has_moved = False
        self._pair = pair
        self._request = GenerateRequest(
            request_id=f"r{number}",
            prompt_token_ids=[(7 * number + step) % 90 + 3 for step in range(60 + 9 * number)],
            max_tokens=tokens,
            ignore_eos=True,
        )
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> list[int]:
        moved = await self._stream(self._pair.source, "")
        if moved is not None:
            assert moved.position == len(self.tokens)
            self.has_moved = True
            assert await self._stream(self._pair.destination, moved.session_id) is None
        return self.tokens

    async def _stream(self, engine: Served, session_id: str) -> engine_pb2.Migrated | None:
        self._request.epoch, self._request.session_id = engine.epoch, session_id
        self._request.resumed_token_ids[:] = self.tokens
        async for chunk in InferenceClient(self._pair.channels, engine.endpoint).generate(self._request):
            if chunk.HasField("migrated"):
                return chunk.migrated
            if chunk.has_token:
                assert chunk.position == len(self.tokens)
                self.tokens.append(chunk.token_id)
                self.at_s.append(time.monotonic())
        return None

    async def heard(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.tokens) < count:  # noqa: ASYNC110 - the stream has no event for it
                await asyncio.sleep(0.002)

    def tokens_per_s(self) -> float:
        """Over the last 50 tokens."""
        return 50 / (self.at_s[-1] - self.at_s[-51])

    def longest_gap_s(self) -> float:
        return max(later - sooner for sooner, later in zip(self.at_s, self.at_s[1:], strict=False))


@asynccontextmanager
async def pair_of(skeleton: Skeleton, **link: float) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(served(skeleton, epoch=1))
        destination = await stack.enter_async_context(served(skeleton, epoch=2))
        proxy = RateLimitedProxy(f"http://{destination.endpoint}", limits_upload=True, **link)  # type: ignore[arg-type]
        stack.enter_context(proxy)
        channels = await stack.enter_async_context(Channels())
        yield Pair(source, destination, proxy, channels)


_UNDISTURBED: dict[tuple[int, int], list[int]] = {}


async def undisturbed(skeleton: Skeleton, *, tokens: int = TOKENS, number: int = 1) -> list[int]:
    if (tokens, number) not in _UNDISTURBED:
        async with pair_of(skeleton) as pair:
            _UNDISTURBED[tokens, number] = await pair.ask(number, tokens=tokens).reading
    return _UNDISTURBED[tokens, number]


async def until_clean(pair: Pair) -> None:
    # A link that breaks may take the word with it that drops a session; then its time to live ends it.
    async with asyncio.timeout(TIME_TO_LIVE_S + 10):
        while not pair.is_clean():  # noqa: ASYNC110 - three processes' worth of state, no event for it
            await asyncio.sleep(0.01)


async def test_a_link_that_breaks_in_the_middle_of_a_round_leaves_the_request_where_it_is(
    skeleton: Skeleton,
) -> None:
    async with pair_of(skeleton, drop_after_bytes=20_000) as pair:
        client = pair.ask()
        await client.heard(100)
        events = await pair.migrate()
        assert [event.kind for event in events] == ["failed"] and events[0].error
        assert await client.reading == await undisturbed(skeleton)
        assert not client.has_moved
        await until_clean(pair)


async def test_a_link_that_is_cut_fails_the_move_and_not_the_stream(skeleton: Skeleton) -> None:
    async with pair_of(skeleton) as pair:
        client = pair.ask()
        await client.heard(50)
        pair.link.is_cut = True
        began_s = time.monotonic()
        events = await pair.migrate()
        assert [event.kind for event in events] == ["failed"]
        assert time.monotonic() - began_s < 40
        assert await client.reading == await undisturbed(skeleton)
        await until_clean(pair)


async def test_a_slow_link_moves_what_it_can_carry(skeleton: Skeleton) -> None:
    async with pair_of(skeleton, bytes_per_s=400_000) as pair:
        client = pair.ask()
        await client.heard(100)
        events = await pair.migrate()
        assert events[-1].kind == "handed_over" and events[-1].round > 1
        assert await client.reading == await undisturbed(skeleton)
        assert client.has_moved
        await until_clean(pair)


async def test_a_link_slower_than_the_decoding_makes_nobody_wait_for_long(skeleton: Skeleton) -> None:
    """Rounds never catch up with the source. The rest would stand still for as long as they took."""
    at_most_s = 0.3
    async with pair_of(skeleton) as pair:
        client = pair.ask(tokens=700)
        await client.heard(100)
        there = Destination(instance_id="i-2", endpoint=pair.link_endpoint, epoch=pair.destination.epoch)
        order = MoveOrder(
            migration_id="m", destination=there, delta_tokens=8, max_rounds=1, held_at_most_s=at_most_s
        )
        # The first round goes through; of what came meanwhile, nothing does.
        events = await pair.move_ever_slower(order)
        assert events[-1].kind == "failed" and "could not be sent" in events[-1].error
        assert await client.reading == await undisturbed(skeleton, tokens=700)
        assert not client.has_moved
        assert at_most_s <= client.longest_gap_s() < at_most_s + 5


async def test_a_destination_without_room_for_a_session_leaves_the_request_where_it_is(
    skeleton: Skeleton,
) -> None:
    async with pair_of(skeleton) as pair:
        there = InferenceClient(pair.channels, pair.destination.endpoint)
        for number in range(8):
            await there.receive_session(parts_of(f"other-{number}", pair), timeout_s=10)
        client = pair.ask()
        await client.heard(50)
        events = await pair.migrate()
        assert [event.kind for event in events] == ["failed"] and "sessions wait" in events[0].error
        assert await client.reading == await undisturbed(skeleton)
        for number in range(8):
            await there.drop_session(session_id=f"other-{number}", epoch=pair.destination.epoch)
        await until_clean(pair)


async def test_a_source_in_the_middle_of_writing_hears_why_it_is_refused(skeleton: Skeleton) -> None:
    """grpcio makes an internal error of a write that fails as the call is ended by its other side."""

    async def long_round() -> AsyncIterator[SessionPart]:
        async for part in parts_of("s", pair, epoch=1):
            yield part
        for number in range(50):
            yield SessionPart(epoch=1, session_id="s" * 200_000)
            if number % 3:
                await asyncio.sleep(0)

    async with pair_of(skeleton) as pair:
        there = InferenceClient(pair.channels, pair.destination.endpoint)
        for _ in range(100):
            with pytest.raises(StaleEpoch):
                await there.receive_session(long_round(), timeout_s=20)


async def parts_of(
    session_id: str, pair: Pair, *, tokens: int = 4, from_token: int = 0, epoch: int | None = None
) -> AsyncIterator[SessionPart]:
    part = SessionPart(
        epoch=pair.destination.epoch if epoch is None else epoch,
        session_id=session_id,
        from_token=from_token,
        token_ids=list(range(3 + from_token, 3 + from_token + tokens)),
        recompute=True,
    )
    if from_token == 0:
        part.request.CopyFrom(GenerateRequest(request_id="r"))
    yield part


async def test_rounds_that_come_twice_or_late_change_no_session(skeleton: Skeleton) -> None:
    async with pair_of(skeleton) as pair:
        there = InferenceClient(pair.channels, pair.destination.endpoint)
        await there.receive_session(parts_of("s", pair), timeout_s=10)
        await there.receive_session(parts_of("s", pair, from_token=4), timeout_s=10)
        # The second once more: it does not follow what is here, and nothing of it is taken.
        with pytest.raises(InvalidInput, match="do not follow"):
            await there.receive_session(parts_of("s", pair, from_token=4), timeout_s=10)
        # Half right is worth nothing: the session is gone, and a late round finds none.
        with pytest.raises(InvalidInput, match="not here"):
            await there.receive_session(parts_of("s", pair, from_token=8), timeout_s=10)
        # The first once more, by a source that tries again, begins anew.
        for _ in range(2):
            await there.receive_session(parts_of("s", pair), timeout_s=10)
        assert pair.destination.engine.load().sessions == 1
        assert (await there.drop_session(session_id="s", epoch=2)).was_there
        assert not (await there.drop_session(session_id="s", epoch=2)).was_there


async def test_a_late_round_cannot_end_the_session_that_took_its_place(skeleton: Skeleton) -> None:
    async with pair_of(skeleton) as pair:
        there = InferenceClient(pair.channels, pair.destination.endpoint)
        has_begun, goes_on = asyncio.Event(), asyncio.Event()

        async def late() -> AsyncIterator[SessionPart]:
            async for part in parts_of("s", pair):
                yield part
            has_begun.set()
            await goes_on.wait()
            yield SessionPart(epoch=2, session_id="s", from_token=99, token_ids=[1])

        earlier = asyncio.create_task(there.receive_session(late(), timeout_s=20))
        await has_begun.wait()
        async with asyncio.timeout(20):
            while not (await there.drop_session(session_id="s", epoch=2)).was_there:
                pass
        await there.receive_session(parts_of("s", pair), timeout_s=10)
        goes_on.set()
        with pytest.raises(InvalidInput):
            await earlier
        assert pair.destination.engine.load().sessions == 1


async def test_a_stale_epoch_neither_moves_nor_receives_nor_drops(skeleton: Skeleton) -> None:
    async with pair_of(skeleton) as pair:
        client = pair.ask()
        await client.heard(50)
        with pytest.raises(StaleEpoch):
            await pair.migrate(pair.order(epoch=99))
        # A destination that is another one by now: the source hears of it and keeps its requests.
        [event] = await pair.migrate(pair.order(destination_epoch=99))
        assert event.kind == "failed" and "epoch" in event.error
        there = InferenceClient(pair.channels, pair.destination.endpoint)
        with pytest.raises(StaleEpoch):
            await there.receive_session(parts_of("s", pair, epoch=1), timeout_s=10)
        with pytest.raises(StaleEpoch):
            await there.drop_session(session_id="s", epoch=1)
        assert await client.reading == await undisturbed(skeleton)
        await until_clean(pair)


async def test_each_request_moves_at_its_own_pace_and_one_that_ends_by_itself_just_ends(
    skeleton: Skeleton,
) -> None:
    """Over a link that long caches keep busy for a while, a short one ends before it has moved."""
    lengths = {1: 800, 2: 140, 3: 800, 4: 800}
    async with pair_of(skeleton) as pair:
        clients = {number: pair.ask(number, tokens=lengths[number]) for number in (1, 2, 3)}
        for client in clients.values():
            await client.heard(100)
        clients[4] = pair.ask(4, tokens=lengths[4])
        await clients[4].heard(2)
        # Two and a half times as fast as the four decode, however fast that is: what comes while the first
        # round goes, of some 640 tokens, takes two fifths of its time, and the short one has ended meanwhile.
        pair.link.bytes_per_s = 2.5 * 4 * clients[1].tokens_per_s() * TOKEN_BYTES
        events = await pair.migrate()
        fates = {event.request_id: event.kind for event in events if event.kind != "round"}
        assert fates == {"r1": "handed_over", "r2": "ended", "r3": "handed_over", "r4": "handed_over"}
        # Nobody waits for the others: the first has moved while another still sends rounds.
        first_end = next(at for at, event in enumerate(events) if event.kind == "handed_over")
        last_round = max(at for at, event in enumerate(events) if event.kind == "round")
        assert first_end < last_round
        for number, tokens in lengths.items():
            heard = await clients[number].reading
            assert heard == await undisturbed(skeleton, tokens=tokens, number=number)
            assert clients[number].has_moved is (number != 2)
        await until_clean(pair)


async def test_a_peer_that_is_cut_off_is_given_up(skeleton: Skeleton) -> None:
    """No packet comes any more, no end of the connection either: the stream must not wait for ever."""
    async with pair_of(skeleton) as pair, Channels(silent_s=1.0) as channels:
        request = GenerateRequest(
            request_id="r", epoch=2, prompt_token_ids=[5, 6, 7], max_tokens=4000, ignore_eos=True
        )
        stream = InferenceClient(channels, pair.link_endpoint).generate(request)
        await anext(aiter(stream))
        pair.link.is_cut = True
        with pytest.raises(EngineGone):
            async with asyncio.timeout(30):
                async for _ in stream:
                    pass
        pair.link.is_cut = False

"""Live migration of one running request, seen from its source: rounds while it goes on, then the hand-over.

    round 1   everything so far          | the source decodes on
    round 2   what came meanwhile        | the source decodes on
    …         until at most delta_tokens are left, or max_rounds were sent
    hold      at a token boundary        | the client's pause begins
    round n   the rest
    hand over the stream here ends with `Moved`, and goes on where its session is

Whatever fails, the request goes on here: until the last moment the source holds all of it.
Source: ServerlessLLM, OSDI'24, section 5 (multi-round live migration).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

from firstlight import fault_points
from firstlight.domain.errors import EngineGone, FirstlightError
from firstlight.domain.migration import Transfer, choose_transfer
from firstlight.rpc.engine_pb2 import CachePart, GenerateRequest, SessionPart
from gpu_worker.engine import cache_wire
from gpu_worker.engine.interface import Moved, MoveEvent, MoveOrder, Receiver
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.requests import ActiveRequest

Tell = Callable[[MoveEvent], None]


class Move:
    """One request on its way. `run` ends when it is handed over, has ended by itself, or stays."""

    def __init__(
        self, loop: DecodeLoop, active: ActiveRequest, receiver: Receiver, order: MoveOrder, tell: Tell
    ) -> None:
        self._loop = loop
        self._active = active
        self._receiver = receiver
        self._order = order
        self._tell = tell
        self._session_id = f"{order.migration_id}/{active.request.request_id}"
        self._sent_tokens = 0
        self._sent_cached = 0
        self._round = 0
        self._began_s = time.monotonic()
        self._transfer = choose_transfer(
            order.transfer,
            tokens=active.cached_tokens,
            cache_bytes=cache_wire.size_bytes(active.cache),
            link=order.link,
        )

    async def run(self) -> None:
        """Never raises for a destination's sake: a failure is told as an event, and the request stays."""
        try:
            while not self._active.is_ended and self._wants_round():
                await self._send()
            await self._hand_over()
        except FirstlightError as failure:
            await self._stay(failure)
        except BaseException:
            self._loop.release(self._active)
            raise

    def _wants_round(self) -> bool:
        """A request that has computed nothing has nothing to send, and starts over there for nothing."""
        if self._active.cached_tokens == 0:
            return False
        left = len(self._active.tokens) - self._sent_tokens
        return self._round == 0 or (left > self._order.delta_tokens and self._round < self._order.max_rounds)

    async def _send(self) -> None:
        """All that was computed since the last round; the source may go on meanwhile."""
        began_s = time.monotonic()
        # In this order: tokens only grow, and the cache never covers more than them.
        cached = self._active.cached_tokens
        tokens = self._active.tokens[:]
        sent = _Counter()
        await self._receiver.receive(self._parts(tokens, cached, sent))
        self._round += 1
        self._tell(
            MoveEvent(
                kind="round",
                request_id=self._active.request.request_id,
                round=self._round,
                tokens=len(tokens) - self._sent_tokens,
                sent_bytes=sent.size_bytes,
                seconds=time.monotonic() - began_s,
                transfer=self._transfer,
            )
        )
        self._sent_tokens, self._sent_cached = len(tokens), cached
        await fault_points.reach("round sent", of=self._active.request.request_id)

    async def _parts(self, tokens: list[int], cached: int, sent: _Counter) -> AsyncIterator[SessionPart]:
        is_exact = self._transfer is Transfer.EXACT
        head = SessionPart(
            epoch=self._order.destination.epoch,
            session_id=self._session_id,
            from_token=self._sent_tokens,
            token_ids=tokens[self._sent_tokens :],
            recompute=not is_exact,
        )
        if self._round == 0:
            head.prompt_tokens = self._active.prompt_tokens
            head.request.CopyFrom(GenerateRequest(request_id=self._active.request.request_id))
        sent.size_bytes += head.ByteSize()
        yield head
        if not is_exact:
            return
        messages = cache_wire.messages_of(self._active.cache, self._sent_cached, cached)
        # Copied by a thread: the event loop goes on handing out tokens of running streams.
        while (parts := await asyncio.to_thread(_next, messages)) is not None:
            message = SessionPart(
                epoch=self._order.destination.epoch, session_id=self._session_id, cache=parts
            )
            sent.size_bytes += message.ByteSize()
            yield message

    async def _hand_over(self) -> None:
        is_held = await self._hold()
        began_s = time.monotonic()
        await fault_points.reach("request held", of=self._active.request.request_id)
        has_session = self._active.cached_tokens > 0
        if is_held and has_session and self._has_news():
            await self._send_rest()
        if not is_held or self._active.is_cancelled:
            await self._ended()
            return
        self._loop.hand_over(
            self._active,
            Moved(
                destination=self._order.destination,
                session_id=self._session_id if has_session else "",
                position=self._active.position,
            ),
        )
        self._tell(
            MoveEvent(
                kind="handed_over" if has_session else "moved_waiting",
                request_id=self._active.request.request_id,
                round=self._round,
                tokens=len(self._active.tokens),
                seconds=time.monotonic() - self._began_s,
                held_s=time.monotonic() - began_s,
                transfer=self._transfer if has_session else "",
            )
        )
        await fault_points.reach("request handed over", of=self._active.request.request_id)

    async def _send_rest(self) -> None:
        """Raises: EngineGone when the link takes too long for one whose client waits."""
        try:
            async with asyncio.timeout(self._order.held_at_most_s):
                await self._send()
        except TimeoutError:
            at_most_s = self._order.held_at_most_s
            raise EngineGone(f"what was left could not be sent in {at_most_s:g} s") from None

    def _has_news(self) -> bool:
        active = self._active
        return len(active.tokens) > self._sent_tokens or active.cached_tokens > self._sent_cached

    async def _hold(self) -> bool:
        """Until it stands at a token boundary; False when it ended before."""
        loop = asyncio.get_running_loop()
        held = asyncio.Event()

        def on_held() -> None:
            loop.call_soon_threadsafe(held.set)

        if not self._loop.hold(self._active, on_held):
            return False
        await held.wait()
        return not self._active.is_ended

    async def _ended(self) -> None:
        self._tell(MoveEvent(kind="ended", request_id=self._active.request.request_id, round=self._round))
        if self._round:
            await self._receiver.drop(self._session_id)

    async def _stay(self, failure: FirstlightError) -> None:
        # First of all: it stands still, and its client waits.
        self._loop.release(self._active)
        self._tell(
            MoveEvent(
                kind="failed",
                request_id=self._active.request.request_id,
                round=self._round,
                error=failure.message,
            )
        )
        if self._round:
            await self._receiver.drop(self._session_id)


class _Counter:
    def __init__(self) -> None:
        self.size_bytes = 0


def _next(messages: Iterator[list[CachePart]]) -> list[CachePart] | None:
    return next(messages, None)

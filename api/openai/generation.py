"""Runs an order: all its choices at once, their text in one queue, as one answer or as an event stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from api.dispatch import Dispatcher
from api.errors import http_error, internal_error
from api.metrics import Metrics
from api.openai.choice_text import ChoiceText, Delta
from api.openai.order import Choice, Order
from api.openai.shapes import DONE, Shape, event, usage_json
from api.routing.lane import Lane, Slot
from api.web.exchange import Sink
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """When a silent stream says that it lives. Until the first sign, an error can still be a plain answer."""

    first_sign_s: float = 2.0
    every_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Monotonic seconds of one request."""

    arrived_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class UsageWish:
    at_end: bool = False
    always: bool = False


_SILENCE = object()


# (slot, dispatched_s, arrived_s) of the first token of a stream; monotonic seconds.
FirstTokenHeard = Callable[[Slot, float, float], None]


class Generation:
    """One per request. Ends every choice, or raises; leaving it early cancels what still runs."""

    def __init__(
        self,
        order: Order,
        *,
        lane: Lane,
        dispatcher: Dispatcher,
        metrics: Metrics,
        on_first_token: FirstTokenHeard,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._order = order
        self._lane = lane
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._first_token_heard = on_first_token
        self._clock = clock
        self._patience = patience
        self._tokens = [0] * len(order.choices)

    async def answer(self, sink: Sink, shape: Shape) -> None:
        """The whole answer at once."""
        parts: list[list[Delta]] = [[] for _ in self._order.choices]
        async with aclosing(self._deltas()) as deltas:
            async for found in deltas:
                if isinstance(found, Delta):
                    parts[found.index].append(found)
        choices = [
            shape.choice(
                choice.index,
                "".join(delta.text for delta in deltas_of),
                [entry for delta in deltas_of for entry in delta.entries]
                if choice.journal.logprobs
                else None,
                deltas_of[-1].finish_reason or "",
            )
            for choice, deltas_of in zip(self._order.choices, parts, strict=True)
        ]
        await sink.answer(shape.whole(choices, self._usage()))

    async def stream(self, sink: Sink, shape: Shape, usage: UsageWish) -> None:
        """Events until [DONE]; an error after the first byte becomes an error event, never a silent cut."""
        try:
            await self._stream(sink, shape, usage)
        except FirstlightError as error:
            if not sink.has_begun:
                raise
            await self._end_with(sink, http_error(error).body())
        except Exception:
            # The outermost loop of a stream whose status line is out: the client must not take a bug's cut
            # for the end of the answer. Raised on, so that it is logged like any other.
            if sink.has_begun:
                await self._end_with(sink, internal_error().body())
            raise

    async def _stream(self, sink: Sink, shape: Shape, usage: UsageWish) -> None:
        opened: set[int] = set()
        async with aclosing(self._deltas()) as deltas:
            async for found in deltas:
                await sink.begin_events()
                if isinstance(found, Delta):
                    await sink.write(self._pieces(found, shape, usage, opened))
                else:
                    await sink.write(self._sign_of_life())
        tail = DONE
        if usage.at_end:
            tail = shape.usage_piece(self._usage()) + DONE
        await sink.write(tail)
        await sink.end()

    def _pieces(self, delta: Delta, shape: Shape, usage: UsageWish, opened: set[int]) -> bytes:
        choice = self._order.choices[delta.index]
        beside = self._usage() if usage.always else "null" if usage.at_end else None
        data = b""
        if delta.index not in opened:
            opened.add(delta.index)
            data = shape.opening(delta.index, choice.prefix, beside)
        if delta.text or delta.entries:
            entries = delta.entries if choice.journal.logprobs else None
            data += shape.text_piece(delta.index, delta.text, entries, beside)
        if delta.finish_reason:
            data += shape.finish_piece(delta.index, delta.finish_reason, beside)
        return data

    async def _deltas(self) -> AsyncGenerator[Delta | object, None]:
        """Deltas of all choices as they come, `_SILENCE` when there is none for a while."""
        queue: asyncio.Queue[Delta | asyncio.Task[None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._run(choice, queue)) for choice in self._order.choices]
        for task in tasks:
            # Its end stands in the queue behind its deltas, with its error if it has one.
            task.add_done_callback(queue.put_nowait)
        left = len(tasks)
        patience_s = self._patience.first_sign_s
        try:
            while left:
                try:
                    async with asyncio.timeout(patience_s):
                        found = await queue.get()
                except TimeoutError:
                    patience_s = self._patience.every_s
                    yield _SILENCE
                    continue
                if isinstance(found, Delta):
                    patience_s = self._patience.every_s
                    yield found
                else:
                    left -= 1
                    found.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._count()

    async def _run(self, choice: Choice, queue: asyncio.Queue[Delta | asyncio.Task[None]]) -> None:
        async with aclosing(self._choice(choice)) as deltas:
            async for delta in deltas:
                queue.put_nowait(delta)

    async def _choice(self, choice: Choice) -> AsyncGenerator[Delta, None]:
        order, journal = self._order, choice.journal
        text = ChoiceText(choice.index, order.text, order.stops)
        first_s = self._metrics.first_token_s.labels(order.record.name)
        inter_s = self._metrics.inter_token_s.labels(order.record.name)
        before_s: float | None = None
        tokens = self._dispatcher.tokens(
            journal, self._lane, deadline_s=self._clock.deadline_s, on_first_token=self._on_first_token
        )
        async with aclosing(tokens):
            async for chunk in tokens:
                now_s = time.monotonic()
                if chunk.has_token:
                    if before_s is None:
                        first_s.observe(now_s - self._clock.arrived_s)
                    else:
                        inter_s.observe(now_s - before_s)
                    before_s = now_s
                delta = text.feed(chunk, logprobs=journal.logprobs)
                self._tokens[choice.index] = text.tokens
                if delta is not None:
                    yield delta
                    if delta.finish_reason:
                        return

    def _on_first_token(self, slot: Slot, dispatched_s: float) -> None:
        self._metrics.queue_s.labels(self._order.record.name).observe(slot.waited_s)
        self._first_token_heard(slot, dispatched_s, self._clock.arrived_s)

    def _usage(self) -> str:
        return usage_json(self._order.prompt_tokens, sum(self._tokens))

    def _count(self) -> None:
        name = self._order.record.name
        self._metrics.request_s.labels(name).observe(time.monotonic() - self._clock.arrived_s)
        self._metrics.prompt_tokens.labels(name).inc(self._order.prompt_tokens)
        self._metrics.generation_tokens.labels(name).inc(sum(self._tokens))

    def _sign_of_life(self) -> bytes:
        name, waited_s = self._order.record.name, time.monotonic() - self._clock.arrived_s
        what = (
            "generating with" if any(self._tokens) else "starting" if self._lane.starting else "waiting for"
        )
        return f": {what} {name} ({waited_s:.0f} s)\n\n".encode()

    async def _end_with(self, sink: Sink, error: bytes) -> None:
        await sink.write(event(error.decode()) + DONE)
        await sink.end()

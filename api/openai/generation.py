"""Runs an order: all its choices at once, their text in one queue, as one answer or as an event stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from api.dispatch import Dispatcher
from api.metrics import Metrics
from api.openai.choice_figures import ChoiceFigures
from api.openai.choice_text import ChoiceText, Delta
from api.openai.inference_span import note_answer
from api.openai.order import BestOf, Choice, Order
from api.openai.shapes import DONE, Shape, usage_json
from api.openai.signs_of_life import SignsOfLife
from api.routing.lane import Slot
from api.web.exchange import Sink


@dataclass(frozen=True, slots=True)
class UsageWish:
    at_end: bool = False
    always: bool = False


_SILENCE = object()


# (slot, dispatched_s, arrived_s) of the first token of a stream; monotonic seconds.
# As in dispatch, then when the request came in.
FirstTokenHeard = Callable[[Slot, float, float, float], None]
# (prompt tokens, generated tokens) of a request, however it ended.
TokensCounted = Callable[[int, int], None]


class Generation:
    """One per request. Ends every choice, or raises; leaving it early cancels what still runs."""

    def __init__(
        self,
        order: Order,
        *,
        dispatcher: Dispatcher,
        metrics: Metrics,
        on_first_token: FirstTokenHeard,
        on_end: TokensCounted,
        signs: SignsOfLife,
    ) -> None:
        self._order = order
        self._lane = signs.lane
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._first_token_heard = on_first_token
        self._tokens_counted = on_end
        self._signs = signs
        self._clock = signs.clock
        self._tokens = [0] * len(order.choices)
        self._reasons: dict[int, str] = {}

    async def answer(self, sink: Sink, shape: Shape) -> None:
        """The whole answer at once."""
        parts: list[list[Delta]] = [[] for _ in self._order.choices]
        async with aclosing(self._deltas(None)) as deltas:
            async for found in deltas:
                if isinstance(found, Delta):
                    parts[found.index].append(found)
        kept = parts if self._order.best is None else likeliest(parts, self._order.best)
        choices = [
            shape.choice(
                index,
                "".join(delta.text for delta in deltas_of),
                [entry for delta in deltas_of for entry in delta.entries]
                if self._order.shows_logprobs
                else None,
                deltas_of[-1].finish_reason or "",
                [piece for delta in deltas_of for piece in delta.calls],
            )
            for index, deltas_of in enumerate(kept)
        ]
        await sink.answer(shape.whole(choices, self._usage()))

    async def stream(self, sink: Sink, shape: Shape, usage: UsageWish) -> None:
        """Events until [DONE]. What it raises is for `ending_clearly` to tell the client."""
        opened: set[int] = set()
        async with aclosing(self._deltas(sink)) as deltas:
            async for found in deltas:
                await sink.begin_events()
                if isinstance(found, Delta):
                    await sink.write(self._pieces(found, shape, usage, opened))
                else:
                    await self._signs.give(sink, is_generating=any(self._tokens))
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
            entries = delta.entries if self._order.shows_logprobs else None
            data += shape.text_piece(delta.index, delta.text, entries, beside)
        if delta.calls:
            data += shape.calls_piece(delta.index, delta.calls, beside)
        if delta.finish_reason:
            data += shape.finish_piece(delta.index, delta.finish_reason, beside)
        return data

    async def _deltas(self, sink: Sink | None) -> AsyncGenerator[Delta | object, None]:
        """Deltas of all choices as they come, `_SILENCE` when there is none for a while."""
        queue: asyncio.Queue[Delta | asyncio.Task[None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._run(choice, queue)) for choice in self._order.choices]
        for task in tasks:
            # Its end stands in the queue behind its deltas, with its error if it has one.
            task.add_done_callback(queue.put_nowait)
        left = len(tasks)
        try:
            while left:
                try:
                    async with asyncio.timeout(None if sink is None else self._signs.wait_s(sink)):
                        found = await queue.get()
                except TimeoutError:
                    yield _SILENCE
                    continue
                if isinstance(found, Delta):
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
        text = ChoiceText(choice.index, order.text, order.stops, order.calling)
        figures = ChoiceFigures(self._metrics, order.record.name, journal, arrived_s=self._clock.arrived_s)

        def on_first_token(slot: Slot, dispatched_s: float, prefill_s: float) -> None:
            figures.placed(slot)
            self._first_token_heard(slot, dispatched_s, prefill_s, self._clock.arrived_s)

        tokens = self._dispatcher.tokens(
            journal, self._lane, deadline_s=self._clock.deadline_s, on_first_token=on_first_token
        )
        async with aclosing(tokens):
            async for chunk in tokens:
                figures.heard(chunk)
                delta = text.feed(chunk, logprobs=journal.logprobs)
                self._tokens[choice.index] = text.tokens
                if delta is not None:
                    yield delta
                    if delta.finish_reason:
                        self._reasons[choice.index] = delta.finish_reason
                        figures.ended(delta.finish_reason)
                        return

    def _usage(self) -> str:
        return usage_json(self._order.prompt_tokens, sum(self._tokens))

    def _count(self) -> None:
        name, prompt, generated = self._order.record.name, self._order.prompt_tokens, sum(self._tokens)
        figures = self._metrics.of(name)
        figures.request_s.observe(time.monotonic() - self._clock.arrived_s)
        figures.prompt_tokens.inc(prompt)
        figures.generation_tokens.inc(generated)
        figures.request_prompt_tokens.observe(prompt)
        figures.request_generation_tokens.observe(generated)
        note_answer(
            model=name, prompt_tokens=prompt, generated_tokens=generated, reasons=list(self._reasons.values())
        )
        self._tokens_counted(prompt, generated)


def likeliest(parts: list[list[Delta]], best: BestOf) -> list[list[Delta]]:
    """Of each prompt's choices those with the highest log-probability a token, the first one first."""
    found: list[list[Delta]] = []
    for first in range(0, len(parts), best.of):
        group = parts[first : first + best.of]
        found += sorted(group, key=_logprob_per_token, reverse=True)[: best.given]
    return found


def _logprob_per_token(deltas: Sequence[Delta]) -> float:
    logprobs = [entry.logprob for delta in deltas for entry in delta.entries]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0

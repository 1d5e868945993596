"""What the API adds to a request: pairs sent in one moment to one engine, one through the API, one past it.

Both meet the same passes of that engine, which other streams keep busy, so that what one waits for the other
waits for too, and their difference is what lies between: HTTP, routing, text, events. Which of the two is
sent first changes from pair to pair.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.api_client import Answer
from benchmarks.api_load import Asker

TOKENS = 8
BACKGROUND_TOKENS = 200
# So many streams of the others, so that the engine always has a pass under way.
BACKGROUND = 2


@dataclass(slots=True)
class Added:
    """Seconds by which requests through the API are behind their twins past it."""

    streams: int
    past_first_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)


async def added_latency(
    through: Callable[[int], Asker], past: Callable[[int], Asker], *, streams: int, rounds: int
) -> Added:
    """`rounds` pairs by each of so many workers that there are `streams` requests at a time."""
    added = Added(streams)
    background = [asyncio.create_task(_keep_busy(past(number))) for number in range(BACKGROUND)]
    workers = (streams - BACKGROUND) // 2
    try:
        await asyncio.gather(
            *(_pairs(added, through(number), past(number), number, rounds) for number in range(workers))
        )
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    return added


async def _pairs(added: Added, through: Asker, past: Asker, number: int, rounds: int) -> None:
    chance = random.Random(number)
    for turn in range(rounds):
        answers = {asker: Answer(asked_s=time.monotonic()) for asker in (through, past)}
        order = [through, past] if turn % 2 else [past, through]
        # The prompt is another one each time: nothing may be remembered.
        await asyncio.gather(*(asker.ask(97 * turn + number, TOKENS, answers[asker]) for asker in order))
        one, twin = answers[through], answers[past]
        assert one.first_s is not None and twin.first_s is not None, "whole answers have a first token"
        added.past_first_s.append(twin.first_s - twin.asked_s)
        added.first_s.append((one.first_s - one.asked_s) - (twin.first_s - twin.asked_s))
        added.whole_s.append((one.ended_s - one.asked_s) - (twin.ended_s - twin.asked_s))
        # Not right behind a pass, which every answer's end is.
        await asyncio.sleep(chance.uniform(0.0, 0.15))
    await through.close()
    await past.close()


async def _keep_busy(asker: Asker) -> None:
    turn = 0
    while True:
        await asker.ask(turn, BACKGROUND_TOKENS, Answer(asked_s=time.monotonic()))
        turn += 1

"""What keeps a silent event stream alive and honest: comments while nothing comes, an error at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from api.errors import http_error, internal_error
from api.openai.shapes import DONE, event
from api.routing.lane import Lane
from api.web.exchange import Sink
from firstlight.domain.errors import Cancelled, FirstlightError

Answer = TypeVar("Answer")
# A client that does not read must not hold up a stop.
LAST_WORDS_S = 0.5
_STOPPING = Cancelled("the server stopped before this answer was done; ask again")


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
class SignsOfLife:
    lane: Lane
    clock: Clock
    patience: Patience

    def wait_s(self, sink: Sink) -> float:
        """How long the next silence may last."""
        return self.patience.every_s if sink.has_begun else self.patience.first_sign_s

    async def give(self, sink: Sink, *, is_generating: bool = False) -> None:
        """One comment line; clients skip it, proxies see that the connection is in use."""
        await sink.begin_events()
        what = "generating with" if is_generating else "starting" if self.lane.starting else "waiting for"
        waited_s = time.monotonic() - self.clock.arrived_s
        await sink.write(f": {what} {self.lane.model} ({waited_s:.0f} s)\n\n".encode())

    # Any: what a coroutine yields and is sent, which only the event loop sees.
    async def during(self, work: Coroutine[Any, Any, Answer], sink: Sink) -> Answer:
        """The answer of `work`, with signs while it takes long."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=self.wait_s(sink)))[0]:
                await self.give(sink)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def ending_clearly(sink: Sink) -> AsyncIterator[None]:
    """An error after the first byte becomes an error event: a stream cut short would look complete.

    Before the first byte it passes, to become a plain answer with its status.
    """
    try:
        yield
    except FirstlightError as error:
        if not sink.has_begun:
            raise
        await _end_with(sink, http_error(error).body())
    except asyncio.CancelledError:
        # This process stops, and cuts its answers; to a client that has left, nothing is written.
        if sink.has_begun:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await _end_with(sink, http_error(_STOPPING).body())
        raise
    except Exception:
        # Raised on, so that it is logged like any other bug.
        if sink.has_begun:
            await _end_with(sink, internal_error().body())
        raise


async def _end_with(sink: Sink, error: bytes) -> None:
    await sink.write(event(error.decode()) + DONE)
    await sink.end()

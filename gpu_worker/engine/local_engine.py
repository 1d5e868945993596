"""The engine of this project: the decode loop, seen from asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from firstlight.domain.errors import FirstlightError
from gpu_worker.engine.interface import Engine, EngineRequest, Event, Finished, Load
from gpu_worker.engine.loop import DecodeLoop


class LocalEngine(Engine):
    """Streams of one `DecodeLoop`. To be used from the event loop it was made in."""

    def __init__(self, loop: DecodeLoop, *, max_concurrency: int, context_length: int) -> None:
        self._loop = loop
        self._home = asyncio.get_running_loop()
        self.max_concurrency = max_concurrency
        self.context_length = context_length

    async def start(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        events: asyncio.Queue[Event | FirstlightError] = asyncio.Queue()

        def deliver(event: Event | FirstlightError) -> None:
            if not self._home.is_closed():
                self._home.call_soon_threadsafe(events.put_nowait, event)

        active = self._loop.submit(request, deliver)
        try:
            while True:
                event = await events.get()
                if isinstance(event, FirstlightError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._loop.cancel(active)

    def load(self) -> Load:
        return self._loop.load()

    def close(self) -> None:
        self._loop.close()

"""A viewer of the console without a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from api_stand import Stand, until

EVENTS = "/admin/v1/events"


class Watching:
    """What one viewer knows: the latest value of every section, as the page keeps it."""

    def __init__(self) -> None:
        self.sections: dict[str, Any] = {}
        # Every value of every section, in the order in which they came.
        self.history: list[tuple[str, Any]] = []
        self.is_over = False

    async def read(self, response: httpx.Response) -> None:
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                self.sections[name] = json.loads(line.removeprefix("data: "))
                self.history.append((name, self.sections[name]))
        self.is_over = True

    async def sees(self, condition: Callable[[dict[str, Any]], object]) -> None:
        await until(lambda: "hosts" in self.sections and condition(self.sections), within_s=20)


@asynccontextmanager
async def watching(api: Stand) -> AsyncIterator[Watching]:
    seen = Watching()
    async with api.http.stream("GET", EVENTS, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        reading = asyncio.create_task(seen.read(response))
        try:
            yield seen
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

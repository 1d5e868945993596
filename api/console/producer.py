"""One producer for all viewers of the console, and nothing produced while nobody looks.

Woken by the notifications that the API hears anyway; a section is sent when it is no longer what it was. Who
reads slowly gets the latest of each section and not its history, so that a viewer's memory is bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from api.console.readings import Sections
from firstlight.domain.errors import FirstlightError, Overloaded

logger = logging.getLogger(__name__)

# Changes come in bunches: a start writes several rows.
SETTLE_S = 0.1
# A busy fleet changes without end.
SOONEST_S = 1.0
# For what no notification tells of: loads that hosts' agents write.
LATEST_S = 10.0
# What this process knows itself costs no query.
LOOK_EVERY_S = 0.5
VIEWERS_AT_MOST = 200


class Viewer:
    """A mailbox of one event per section."""

    def __init__(self, events: dict[str, bytes]) -> None:
        self._pending = dict(events)
        self._news = asyncio.Event()
        self.is_over = False
        if self._pending:
            self._news.set()

    def put(self, section: str, event: bytes) -> None:
        self._pending[section] = event
        self._news.set()

    def end(self) -> None:
        """`next` returns what is left, and nothing more will come."""
        self.is_over = True
        self._news.set()

    async def next(self) -> bytes:
        """Every section that changed since the last call; waits for one."""
        await self._news.wait()
        self._news.clear()
        events = b"".join(self._pending.values())
        self._pending.clear()
        return events


class Producer:
    """`read` asks Postgres, `look` only memory; both give sections by name."""

    def __init__(self, *, read: Callable[[], Awaitable[Sections]], look: Callable[[], Sections]) -> None:
        self._read = read
        self._look = look
        self._viewers: set[Viewer] = set()
        self._events: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._watched = asyncio.Event()
        self._is_closing = False

    def changed(self) -> None:
        """Something of the fleet is no longer what it was."""
        self._changed.set()

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[Viewer]:
        """Raises: Overloaded when too many look already, or the process stops."""
        if self._is_closing or len(self._viewers) >= VIEWERS_AT_MOST:
            raise Overloaded(f"{len(self._viewers)} consoles are open already", retry_after_s=5.0)
        if not self._viewers:
            # Nobody has looked for a while: what was known then may be wrong by now.
            self._events.clear()
            self._changed.set()
        viewer = Viewer(self._events)
        self._viewers.add(viewer)
        self._watched.set()
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._watched.clear()

    def close(self) -> None:
        """End all streams: an open console must not hold up a stop."""
        self._is_closing = True
        for viewer in self._viewers:
            viewer.end()

    async def run(self) -> None:
        """Never returns; cancel it to stop."""
        await asyncio.gather(self._run_reading(), self._run_looking())

    async def _run_reading(self) -> None:
        while True:
            await self._watched.wait()
            self._changed.clear()
            try:
                self._publish(await self._read())
                self._publish({"trouble": None})
            except FirstlightError as error:
                logger.debug("the console's figures could not be read: %s", error.message)
                self._publish({"trouble": error.message})
            await asyncio.sleep(SOONEST_S)
            try:
                async with asyncio.timeout(LATEST_S):
                    await self._changed.wait()
                    await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                continue

    async def _run_looking(self) -> None:
        while True:
            await self._watched.wait()
            self._publish(self._look())
            await asyncio.sleep(LOOK_EVERY_S)

    def _publish(self, sections: Sections) -> None:
        for name, value in sections.items():
            event = event_of(name, value)
            if self._events.get(name) != event:
                self._events[name] = event
                for viewer in self._viewers:
                    viewer.put(name, event)


def event_of(name: str, value: object) -> bytes:
    """One server-sent event; JSON has no line end that could break it."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return f"event: {name}\ndata: {data}\n\n".encode()

"""A response that is worked out while it is sent, and given up the moment the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Sink:
    """Where work writes its answer: one body, or a stream begun by `begin`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def answer(self, body: bytes, *, media_type: str = "application/json") -> None:
        await self._start(200, {"content-type": media_type, "content-length": str(len(body))})
        await self._send({"type": "http.response.body", "body": body})

    async def begin_events(self) -> None:
        """Send the headers of an event stream, once."""
        if not self.has_begun:
            # No proxy may hold events back to fill a buffer.
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            await self._start(200, {"content-type": "text/event-stream; charset=utf-8", **headers})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_begun = True
        rows = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": rows})


Work = Callable[[Sink], Awaitable[None]]


class Exchange(Response):
    """Runs `work`; cancels it when the client disconnects, so that an engine's place is free at once.

    Errors before the first byte leave here for the application's handlers, which answer them.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._work(Sink(send)))
        gone = asyncio.create_task(_until_disconnect(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue

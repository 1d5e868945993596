"""The plainest streaming client there is: what is measured must not be a client library's own work.

One connection a worker, kept alive; an answer is read as it comes, and only its events are counted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

EVENT = b"data: {"
LIMIT_BYTES = 1 << 20


class Broken(Exception):
    """The connection was refused, cut, or carried something that is no HTTP answer."""


@dataclass(slots=True)
class Answer:
    """One answer as its client saw it; monotonic seconds. `events_s` are the moments its events came."""

    asked_s: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    first_s: float | None = None
    ended_s: float = 0.0
    events_s: list[float] = field(default_factory=list)
    body: bytes = b""

    @property
    def is_whole(self) -> bool:
        """An event stream that reached its end, and told no error on the way."""
        return self.status == 200 and bool(self.events_s) and b'data: {"error"' not in self.body


class HttpClient:
    """One connection to `url`'s server. To be used by one request at a time."""

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        try:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, limit=LIMIT_BYTES
            )
        except OSError as failure:
            raise Broken(f"no connection: {failure}") from failure

    async def close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    # Any: a JSON body.
    async def post(self, path: str, body: Mapping[str, Any], *, into: Answer | None = None) -> Answer:
        """The answer, read to its end; `into` is filled as it comes. Raises: Broken."""
        answer = into or Answer(asked_s=0.0)
        answer.asked_s = time.monotonic()
        try:
            if self._writer is None:
                await self.connect()
            assert self._writer is not None and self._reader is not None, "just connected"
            self._writer.write(self._request(path, json.dumps(body).encode()))
            await self._read_head(self._reader, answer)
            await self._read_body(self._reader, answer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as failure:
            await self.close()
            raise Broken(f"after {time.monotonic() - answer.asked_s:.1f} s: {failure!r}") from failure
        except BaseException:
            # Left in the midst of an answer: what comes next on this connection would be its rest.
            await self.close()
            raise
        answer.ended_s = time.monotonic()
        if answer.headers.get("connection") == "close":
            await self.close()
        return answer

    def _request(self, path: str, data: bytes) -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\ncontent-type: application/json\r\n"
            f"{self._more}content-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    async def _read_head(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        answer.status = int(lines[0].split(" ")[1])
        rows = (line.partition(":") for line in lines[1:] if line)
        answer.headers = {name.lower(): value.strip() for name, _, value in rows}

    async def _read_body(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        if (length := answer.headers.get("content-length")) is not None:
            answer.body = await reader.readexactly(int(length))
            return
        # Chunked. A server writes whole events, so that only its very last chunk ends like this.
        while not answer.body.endswith(b"\r\n0\r\n\r\n"):
            data = await reader.read(65536)
            if not data:
                raise Broken("the answer was cut short")
            answer.body += data
            if (fresh := answer.body.count(EVENT) - len(answer.events_s)) > 0:
                now_s = time.monotonic()
                answer.first_s = now_s if answer.first_s is None else answer.first_s
                answer.events_s += [now_s] * fresh

"""A TCP proxy that passes bytes at a given rate and counts them: a remote tier of known bandwidth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

BLOCK_BYTES = 64 * 2**10


class SlowProxy:
    """Counts what comes back from the server; `bytes_per_s` may be changed while it runs."""

    def __init__(self, upstream: str, bytes_per_s: float) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self.bytes_per_s = bytes_per_s
        self.bytes_passed = 0
        self.endpoint = ""
        self._turn = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(
                self._pass(reader, up_writer, is_slow=False), self._pass(up_reader, writer, is_slow=True)
            )
        writer.close()
        up_writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_slow: bool
    ) -> None:
        while block := await reader.read(BLOCK_BYTES):
            if is_slow:
                async with self._turn:
                    await asyncio.sleep(len(block) / self.bytes_per_s)
                self.bytes_passed += len(block)
            writer.write(block)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def slow_proxy(upstream: str, *, bytes_per_s: float) -> AsyncIterator[SlowProxy]:
    proxy = SlowProxy(upstream, bytes_per_s)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()

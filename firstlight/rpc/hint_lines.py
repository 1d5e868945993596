"""Hints to stores over calls that stay open.

A call of its own takes gRPC twice as long as a message on one that stands, and bytes wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

import grpc

from firstlight.domain.errors import EngineGone
from firstlight.rpc import store_pb2
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import StoreClient, check_closed
from firstlight.rpc.store_pb2_grpc import StoreStub
from firstlight.telemetry import tracing

ANSWERED_WITHIN_S = 2.0


class HintLines:
    """One line to each store that `keep` names. Where none stands, a hint is a call of its own.

    Owned by a composition root, which closes it; belongs to one event loop, as its channels do.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._lines: dict[str, _Line] = {}

    def keep(self, addresses: Iterable[str]) -> None:
        """Open a line to each of these that has none, or a broken one; close those to others. Never waits."""
        wanted = set(addresses)
        for address, line in list(self._lines.items()):
            if address not in wanted or line.has_ended:
                line.close()
                del self._lines[address]
        for address in wanted - self._lines.keys():
            self._lines[address] = _Line(self._channels, address)

    async def until_open(self, address: str) -> bool:
        """Whether the line to this store, if it is kept, came to stand within `ANSWERED_WITHIN_S`."""
        if (line := self._lines.get(address)) is None:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                return await line.until_open()
        return False

    async def prepare(self, address: str, request: store_pb2.PrepareRequest) -> store_pb2.PrepareReply:
        """Raises: as StoreClient.prepare."""
        line = self._lines.get(address)
        # A message on a line belongs to no trace.
        if line is not None and line.is_open and not tracing.is_on():
            try:
                return await line.ask(request)
            except EngineGone:
                # The line is, the store may be well; and why it refuses a hint is told by a call alone.
                line.close()
        return await StoreClient(self._channels, address).hint(request)

    async def close(self) -> None:
        lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            line.close()
        await asyncio.gather(*(line.listening for line in lines), return_exceptions=True)


class _Line:
    """One call of `Hints`. `listening` ends with it."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._peer = f"store {address}"
        # Without an iterator of requests: they are written as they come.
        self._call = StoreStub(channels.to(address)).Hints()  # type: ignore[call-arg]
        # Who waits for an answer, in the order asked; answers come in the same.
        self._asked: deque[asyncio.Future[store_pb2.PrepareReply]] = deque()
        self._writing = asyncio.Lock()
        self._opened = asyncio.Event()
        self.has_ended = False
        self.listening = asyncio.get_running_loop().create_task(self._listen(), name=f"hints to {address}")

    @property
    def is_open(self) -> bool:
        return self._opened.is_set() and not self.has_ended

    async def until_open(self) -> bool:
        opening = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait({opening, self.listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opening.cancel()
        return self.is_open

    async def ask(self, request: store_pb2.PrepareRequest) -> store_pb2.PrepareReply:
        """Raises: EngineGone when the line breaks, also over this hint, or does not answer."""
        answer: asyncio.Future[store_pb2.PrepareReply] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                async with self._writing:
                    self._asked.append(answer)
                    await self._call.write(request)
                return await answer
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as failure:
            raise self._gone() from failure
        except asyncio.CancelledError:
            check_closed(self._peer)
            raise

    def close(self) -> None:
        self._call.cancel()

    async def _listen(self) -> None:
        # CancelledError is what a call that `close` has cancelled ends with.
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await self._call.initial_metadata()
            self._opened.set()
            async for reply in self._call:
                if not (asked := self._asked.popleft()).done():
                    asked.set_result(reply)
        self.has_ended = True
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(self._gone())
                # Whoever asked may have given up.
                asked.exception()

    def _gone(self) -> EngineGone:
        return EngineGone(f"the line to {self._peer} has broken", peer=self._peer)

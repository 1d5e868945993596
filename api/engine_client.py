"""Engines as the API sees them: one token stream per call, and a question whether an engine is well."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum

from api.journal import Journal
from api.routing.lane import Route
from firstlight.domain.errors import FirstlightError
from firstlight.rpc import engine_pb2
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient

# What an engine said before it ended may still be on its way: a hand-over, or a stream's last tokens.
LAST_WORDS_S = 3.0
# A connection to an engine that serves nothing of ours by then is closed.
MET_FOR_S = 60.0


class Health(StrEnum):
    WELL = "well"
    GONE = "gone"  # something else, or nothing of this epoch, answers at the address
    SILENT = "silent"


class EngineClient:
    """Clients are kept per endpoint; the channel under each is opened once."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._clients: dict[str, InferenceClient] = {}
        # Engines that may serve, and since when they are expected to (monotonic).
        self._met: dict[str, float] = {}

    def generate(self, route: Route, journal: Journal) -> AsyncIterator[engine_pb2.GenerateChunk]:
        """Tokens behind those of the journal. Closing the iterator cancels the call."""
        return self._client(route.endpoint).generate(journal.to_request(epoch=route.epoch))

    def embed(self, route: Route, request: engine_pb2.EmbedRequest) -> AsyncIterator[engine_pb2.EmbedChunk]:
        """Vectors, in any order. Closing the iterator cancels the call."""
        return self._client(route.endpoint).embed(request)

    async def health(self, route: Route) -> Health:
        try:
            status = await self._client(route.endpoint).status(timeout_s=2.0)
        except FirstlightError:
            return Health.SILENT
        is_same = status.instance_id == route.instance_id and status.epoch == route.epoch
        return Health.WELL if is_same and status.state == "ready" else Health.GONE

    async def forget(self, endpoint: str) -> None:
        """Close the channel to an engine that has ended. Streams that hang on it go on elsewhere."""
        if self._clients.pop(endpoint, None) is not None:
            await self._channels.forget(endpoint, grace_s=LAST_WORDS_S)

    async def meet(self, endpoints: Iterable[str]) -> None:
        """Connect to engines that may soon serve: a first request need not wait for that."""
        now_s = time.monotonic()
        for endpoint, since_s in list(self._met.items()):
            if now_s - since_s > MET_FOR_S:
                del self._met[endpoint]
                if endpoint not in self._clients:
                    await self._channels.forget(endpoint)
        for endpoint in endpoints:
            if endpoint not in self._clients:
                self._met[endpoint] = now_s
                self._channels.connect(endpoint)

    def _client(self, endpoint: str) -> InferenceClient:
        client = self._clients.get(endpoint)
        if client is None:
            client = self._clients[endpoint] = InferenceClient(self._channels, endpoint)
        return client

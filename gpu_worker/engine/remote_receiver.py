"""Another engine over gRPC, as the receiver of requests that move there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from firstlight.domain.errors import FirstlightError
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from firstlight.rpc.engine_pb2 import SessionPart
from gpu_worker.engine.interface import Destination, Receiver

# A destination that is silent for so long in one round is given up; its requests go on at the source.
ROUND_TIMEOUT_S = 30.0


class RemoteReceiver(Receiver):
    """One destination engine, under its epoch."""

    def __init__(self, client: InferenceClient, epoch: int) -> None:
        self._client = client
        self._epoch = epoch

    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        reply = await self._client.receive_session(parts, timeout_s=ROUND_TIMEOUT_S)
        return int(reply.cached_tokens)

    async def drop(self, session_id: str) -> None:
        # It expires there by itself.
        with contextlib.suppress(FirstlightError):
            await self._client.drop_session(session_id=session_id, epoch=self._epoch)


@contextlib.asynccontextmanager
async def remote_receiver(destination: Destination) -> AsyncIterator[RemoteReceiver]:
    """A channel of its own, for the time of one migration."""
    async with Channels() as channels:
        yield RemoteReceiver(InferenceClient(channels, destination.endpoint), destination.epoch)

"""A contract fake of the engine: a real gRPC server that emits a token stream anyone can compute.

Token at position p of a prompt is `token_at(...)`: it depends on the prompt, the position and, when sampled,
the seed, so that a resumed stream goes on exactly as an undisturbed one.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from firstlight.domain.errors import FirstlightError, StaleEpoch
from firstlight.domain.names import parse_checkpoint_id
from firstlight.rpc import engine_pb2, engine_pb2_grpc, store_pb2, store_pb2_grpc
from firstlight.rpc.status import answering

TokenAt = Callable[[Sequence[int], int, int], int | None]


def scripted(tokens: Sequence[int]) -> TokenAt:
    """The same tokens for every prompt; the model's end token behind the last."""
    return lambda prompt, position, seed: tokens[position] if position < len(tokens) else None


def hashed(vocabulary: int) -> TokenAt:
    """Endless tokens that depend on prompt, position and seed."""

    def token_at(prompt: Sequence[int], position: int, seed: int) -> int:
        return zlib.crc32(repr((list(prompt), position, seed)).encode()) % vocabulary

    return token_at


VECTOR_SIZE = 4


def vector_of(tokens: Sequence[int]) -> bytes:
    """Anyone can compute it: not of length 1, and another for other tokens."""
    return struct.pack("<4f", len(tokens), sum(tokens), -tokens[0], 0.5)


@dataclass(eq=False)
class FakeEngine(engine_pb2_grpc.InferenceServicer):
    """One instance. Set `dies_at`, `pause_s` or `failure` to make it misbehave."""

    instance_id: str
    epoch: int
    token_at: TokenAt
    pause_s: float = 0.0
    # Ends every stream without a finish_reason before this position.
    dies_at: int | None = None
    failure: FirstlightError | None = None
    # (seed, position) to the log-probability that is told.
    logprob_at: Callable[[int, int], float] = lambda seed, position: -0.25
    # Called with this engine when a stream begins.
    on_request: Callable[[FakeEngine], None] = lambda engine: None
    # Hands every stream over to that engine before position `moves_at`.
    moves_to: FakeEngine | None = None
    moves_at: int = 0
    # While set, streams stand still.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[engine_pb2.GenerateRequest] = field(default_factory=list)
    embedded: list[engine_pb2.EmbedRequest] = field(default_factory=list)
    running: int = 0
    # What it says of itself while nothing runs.
    idle_s: float = 0.0
    # How often it was asked; from this answer on it says that it is busy.
    looks: int = 0
    busy_from_look: int | None = None
    most_running: int = 0
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.gate.set()
        self._server = grpc.aio.server()
        engine_pb2_grpc.add_InferenceServicer_to_server(self, self._server)
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> FakeEngine:
        await self._server.start()
        return self

    async def stop(self) -> None:
        """Die: open streams break off."""
        await self._server.stop(None)

    # Any: grpc.aio's context is generic in messages that are not looked at.
    async def Generate(
        self, request: engine_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[engine_pb2.GenerateChunk]:
        self.requests.append(request)
        self.on_request(self)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            async with answering(context):
                if request.epoch != self.epoch:
                    raise StaleEpoch(f"epoch {request.epoch} is not {self.epoch}")
                if self.failure is not None:
                    raise self.failure
                async for chunk in self._tokens(request):
                    yield chunk
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    # Any: grpc.aio's context is generic in messages that are not looked at.
    async def Embed(
        self, request: engine_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[engine_pb2.EmbedChunk]:
        """Last input first; `dies_at` counts vectors."""
        self.embedded.append(request)
        self.running += 1
        try:
            async with answering(context):
                if request.epoch != self.epoch:
                    raise StaleEpoch(f"epoch {request.epoch} is not {self.epoch}")
                for count, index in enumerate(reversed(range(len(request.inputs)))):
                    await self.gate.wait()
                    if count == self.dies_at:
                        return
                    yield engine_pb2.EmbedChunk(
                        index=index, vector=vector_of(request.inputs[index].token_ids)
                    )
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _tokens(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateChunk]:
        seed = request.sampling.seed if request.sampling.temperature > 0 else 0
        for position in range(len(request.resumed_token_ids), request.max_tokens):
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            await self.gate.wait()
            if position == self.dies_at:
                return
            if self.moves_to is not None and position >= self.moves_at:
                yield engine_pb2.GenerateChunk(migrated=self._moved(request.request_id, position))
                return
            token = self.token_at(list(request.prompt_token_ids), position, seed)
            if token is None or (token in request.stop_token_ids and not request.ignore_eos):
                yield engine_pb2.GenerateChunk(position=position, finish_reason="stop")
                return
            yield self._chunk(request, position, token)
        yield engine_pb2.GenerateChunk(position=request.max_tokens, finish_reason="length")

    def _moved(self, request_id: str, position: int) -> engine_pb2.Migrated:
        assert self.moves_to is not None
        return engine_pb2.Migrated(
            instance_id=self.moves_to.instance_id,
            endpoint=self.moves_to.endpoint,
            epoch=self.moves_to.epoch,
            session_id=f"session/{request_id}",
            position=position,
        )

    def _chunk(
        self, request: engine_pb2.GenerateRequest, position: int, token: int
    ) -> engine_pb2.GenerateChunk:
        chunk = engine_pb2.GenerateChunk(position=position, token_id=token, has_token=True)
        if request.logprobs:
            chunk.logprob = self.logprob_at(request.sampling.seed, position)
            for rank in range(request.top_logprobs):
                chunk.top_logprobs.add(token_id=token + rank, logprob=-0.25 - rank)
        return chunk

    async def Status(
        self, request: engine_pb2.EngineStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.EngineStatusReply:
        self.looks += 1
        is_busy = self.busy_from_look is not None and self.looks >= self.busy_from_look
        return engine_pb2.EngineStatusReply(
            state="ready",
            instance_id=self.instance_id,
            epoch=self.epoch,
            running=self.running + is_busy,
            idle_s=self.idle_s,
        )


@dataclass(eq=False)
class FakeStore(store_pb2_grpc.StoreServicer):
    """A store that holds the small files of some checkpoints and notes the hints it gets."""

    files: dict[str, dict[str, bytes]]
    prepared: list[str] = field(default_factory=list)
    # Hints that came on a line, which only `takes_lines` has: a store of an earlier version knows none.
    on_line: list[str] = field(default_factory=list)
    takes_lines: bool = False
    served: list[str] = field(default_factory=list)
    # Answers to come that do not: as of one that dies over a question, and is back for the next.
    deaths: int = 0

    def __post_init__(self) -> None:
        self._server = grpc.aio.server()
        store_pb2_grpc.add_StoreServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> FakeStore:
        await self._server.start()
        return self

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Prepare(
        self, request: store_pb2.PrepareRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> store_pb2.PrepareReply:
        async with answering(context):
            # As a store does; a rehearsal names none.
            parse_checkpoint_id(request.checkpoint_id)
            self.prepared.append(request.checkpoint_id)
            return store_pb2.PrepareReply(found_in="ssd")

    async def Hints(
        self,
        request_iterator: AsyncIterator[store_pb2.PrepareRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[store_pb2.PrepareReply]:
        if not self.takes_lines:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        await context.send_initial_metadata(())
        async for request in request_iterator:
            self.on_line.append(request.checkpoint_id)
            yield store_pb2.PrepareReply(found_in="ssd")

    async def GetFiles(
        self, request: store_pb2.GetFilesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> store_pb2.GetFilesReply:
        from firstlight.domain.errors import UnknownCheckpoint

        if self.deaths:
            self.deaths -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        async with answering(context):
            if request.checkpoint_id not in self.files:
                raise UnknownCheckpoint(f"{request.checkpoint_id} is not here")
        self.served.append(request.checkpoint_id)
        return store_pb2.GetFilesReply(files=self.files[request.checkpoint_id], manifest_digest="d" * 64)

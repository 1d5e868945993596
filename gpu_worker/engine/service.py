"""The Inference service of one engine: gRPC to the engine's interface, under the fencing epoch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import grpc

from firstlight.domain.errors import FirstlightError, InstanceDraining, InvalidInput
from firstlight.domain.migration import PRIOR_LINK, Link, Transfer
from firstlight.rpc import engine_pb2, engine_pb2_grpc
from firstlight.rpc.status import abort_with, answering
from firstlight.telemetry import tracing
from firstlight.telemetry.ids import bind
from gpu_worker.engine.interface import (
    DELTA_TOKENS,
    MAX_ROUNDS,
    Destination,
    Embedded,
    EmbeddingRequest,
    EngineRequest,
    Event,
    Load,
    Moved,
    MoveEvent,
    MoveOrder,
    Token,
)
from gpu_worker.engine.remote_receiver import remote_receiver
from gpu_worker.engine.sampling import Sampling
from gpu_worker.engine.state import EngineState
from gpu_worker.engine.traced_phases import TracedPhases

MAX_TOP_LOGPROBS = 32
# For so long a refused round is read to its end.
READ_OUT_S = 5.0

# Any: the context is generic in messages this service never names.
Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")


class InferenceService(engine_pb2_grpc.InferenceServicer):
    """Serves from the moment the process is spare; Generate is refused until a model is bound."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._streams: dict[asyncio.Task[object], asyncio.Event] = {}
        self._aborting = asyncio.Event()

    async def Generate(
        self, request: engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[engine_pb2.GenerateChunk]:
        # A call is a task of its own.
        bind(request_id=request.request_id)
        try:
            self._state.check_epoch(request.epoch)
            engine = self._state.ready_engine()
            with self._state.request():
                # Closed explicitly: a client that leaves between two tokens must free its slot at once.
                async with contextlib.aclosing(engine.start(_engine_request(request))) as stream:
                    phases = self._traced(request) if tracing.is_on() else None
                    async for event in self._until_aborted(stream):
                        if phases is not None:
                            phases.heard(event)
                        yield _chunk(event)
        except FirstlightError as error:
            await abort_with(context, error)

    async def Embed(
        self, request: engine_pb2.EmbedRequest, context: Context
    ) -> AsyncIterator[engine_pb2.EmbedChunk]:
        bind(request_id=request.request_id)
        try:
            self._state.check_epoch(request.epoch)
            engine = self._state.ready_engine()
            with self._state.request():
                # Closed explicitly, as in Generate.
                async with contextlib.aclosing(engine.embed(_embedding_request(request))) as stream:
                    async for event in self._until_aborted(stream):
                        yield _vector_chunk(event)
        except FirstlightError as error:
            await abort_with(context, error)

    def _traced(self, request: engine_pb2.GenerateRequest) -> TracedPhases:
        bound = self._state.attachment
        return TracedPhases(_engine_request(request), model=bound.model if bound is not None else "")

    async def Status(
        self, request: engine_pb2.EngineStatusRequest, context: Context
    ) -> engine_pb2.EngineStatusReply:
        state = self._state
        reply = engine_pb2.EngineStatusReply(
            state=state.name, idle_s=state.idle_s, rss_bytes=private_memory_bytes()
        )
        if (bound := state.attachment) is not None:
            reply.instance_id, reply.epoch = bound.instance_id, bound.epoch
            reply.model, reply.checkpoint_id = bound.model, bound.checkpoint_id
        if (engine := state.engine) is not None:
            load: Load = engine.load()
            reply.running, reply.waiting = load.running, load.waiting
            reply.tokens_generated, reply.sessions = load.tokens_generated, load.sessions
            reply.request_tokens = load.request_tokens
            reply.max_concurrency, reply.context_length = engine.max_concurrency, engine.context_length
        return reply

    async def WaitIdle(
        self, request: engine_pb2.WaitIdleRequest, context: Context
    ) -> engine_pb2.WaitIdleReply:
        async with answering(context):
            self._state.check_epoch(request.epoch)
            return engine_pb2.WaitIdleReply(idle_s=await self._state.wait_idle(request.idle_s))
        raise AssertionError("answered above")

    async def MigrateOut(
        self, request: engine_pb2.MigrateOutRequest, context: Context
    ) -> AsyncIterator[engine_pb2.MigrationEvent]:
        try:
            self._state.check_epoch(request.epoch)
            order = _move_order(request)
            async with remote_receiver(order.destination) as receiver:
                with self._state.moving_out() as engine:
                    async with contextlib.aclosing(engine.move_out(order, receiver)) as events:
                        async for event in events:
                            yield _migration_event(event)
        except FirstlightError as error:
            await abort_with(context, error)

    async def ReceiveSession(
        self, request_iterator: AsyncIterator[engine_pb2.SessionPart], context: Context
    ) -> engine_pb2.SessionReply:
        async with answering(context):
            began_s = time.monotonic()
            try:
                cached = await self._state.ready_engine().receive(self._checked(request_iterator))
            except FirstlightError:
                await _read_out(request_iterator)
                raise
            return engine_pb2.SessionReply(cached_tokens=cached, compute_s=time.monotonic() - began_s)
        raise AssertionError("answered above")

    async def DropSession(
        self, request: engine_pb2.DropSessionRequest, context: Context
    ) -> engine_pb2.DropSessionReply:
        async with answering(context):
            self._state.check_epoch(request.epoch)
            engine = self._state.engine
            return engine_pb2.DropSessionReply(
                was_there=engine is not None and engine.drop(request.session_id)
            )
        raise AssertionError("answered above")

    async def _checked(
        self, parts: AsyncIterator[engine_pb2.SessionPart]
    ) -> AsyncIterator[engine_pb2.SessionPart]:
        async for part in parts:
            self._state.check_epoch(part.epoch)
            yield part

    async def Drain(self, request: engine_pb2.DrainRequest, context: Context) -> engine_pb2.DrainReply:
        async with answering(context):
            self._state.check_epoch(request.epoch)
            return engine_pb2.DrainReply(aborted=await self.drain(request.timeout_s))
        raise AssertionError("answered above")

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the running ones; how many had to be ended after `timeout_s`."""
        self._state.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._state.wait_idle(0.0)
                return 0
        except TimeoutError:
            aborted = self._state.active
            self._aborting.set()
            await self._state.wait_idle(0.0)
            return aborted

    async def _until_aborted(self, stream: AsyncIterator[Answer]) -> AsyncIterator[Answer]:
        """The stream's events. Raises: InstanceDraining once a drain has run out of patience."""
        aborting = asyncio.ensure_future(self._aborting.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(stream, None))
                try:
                    await asyncio.wait({following, aborting}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.wait({following})
                if following.cancelled():
                    raise InstanceDraining("the instance was drained before this request was done")
                event = following.result()
                if event is None:
                    return
                yield event
        finally:
            aborting.cancel()


async def _read_out(parts: AsyncIterator[engine_pb2.SessionPart]) -> None:
    """What is left of a round that failed.

    A call that is ended under a writing client reaches it as "Internal error from Core" instead of why:
    grpcio takes the failed write for the outcome.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in parts:
                pass


def _engine_request(request: engine_pb2.GenerateRequest) -> EngineRequest:
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidInput(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    return EngineRequest(
        request_id=request.request_id,
        prompt_token_ids=tuple(request.prompt_token_ids),
        resumed_token_ids=tuple(request.resumed_token_ids),
        max_tokens=request.max_tokens,
        stop_token_ids=frozenset(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        sampling=_sampling(request.sampling),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        session_id=request.session_id,
        grammar=request.grammar,
    )


def _embedding_request(request: engine_pb2.EmbedRequest) -> EmbeddingRequest:
    return EmbeddingRequest(
        request_id=request.request_id, inputs=tuple(tuple(one.token_ids) for one in request.inputs)
    )


def _vector_chunk(event: Embedded) -> engine_pb2.EmbedChunk:
    return engine_pb2.EmbedChunk(**asdict(event))


def _move_order(request: engine_pb2.MigrateOutRequest) -> MoveOrder:
    if request.transfer not in ("", *Transfer):
        raise InvalidInput(f"transfer {request.transfer!r} is not one of {', '.join(Transfer)}")
    if not request.migration_id or not request.destination_endpoint:
        raise InvalidInput("a migration needs an id and a destination")
    return MoveOrder(
        migration_id=request.migration_id,
        destination=Destination(
            instance_id=request.destination_instance_id,
            endpoint=request.destination_endpoint,
            epoch=request.destination_epoch,
        ),
        transfer=Transfer(request.transfer or Transfer.EXACT),
        delta_tokens=request.delta_tokens or DELTA_TOKENS,
        max_rounds=request.max_rounds or MAX_ROUNDS,
        link=Link(
            bandwidth_bytes_per_s=request.bandwidth_bytes_per_s or PRIOR_LINK.bandwidth_bytes_per_s,
            prefill_tokens_per_s=request.prefill_tokens_per_s or PRIOR_LINK.prefill_tokens_per_s,
        ),
    )


def _migration_event(event: MoveEvent) -> engine_pb2.MigrationEvent:
    return engine_pb2.MigrationEvent(**asdict(event))


def _sampling(sampling: engine_pb2.Sampling) -> Sampling:
    """Zero means "off" on the wire, where every absent number is zero."""
    return Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p or 1.0,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        repetition_penalty=sampling.repetition_penalty or 1.0,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
    )


def _chunk(event: Event) -> engine_pb2.GenerateChunk:
    if isinstance(event, Moved):
        return engine_pb2.GenerateChunk(
            migrated=engine_pb2.Migrated(
                **asdict(event.destination), session_id=event.session_id, position=event.position
            )
        )
    if not isinstance(event, Token):
        return engine_pb2.GenerateChunk(finish_reason=event.reason)
    return engine_pb2.GenerateChunk(
        position=event.position,
        token_id=event.token_id,
        has_token=True,
        logprob=event.logprob or 0.0,
        top_logprobs=[
            engine_pb2.TokenLogprob(token_id=token_id, logprob=logprob)
            for token_id, logprob in event.top_logprobs
        ],
        queue_s=event.queue_s,
        prefill_s=event.prefill_s,
        weights_s=event.weights_s,
    )


def private_memory_bytes() -> int:
    """What this process holds by itself: the store's arena, mapped here too, is not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0

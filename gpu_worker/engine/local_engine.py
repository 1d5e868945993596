"""The engine of this project: the decode loop, seen from asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from firstlight.domain.errors import FirstlightError, InvalidInput
from firstlight.rpc.engine_pb2 import SessionPart
from gpu_worker.engine.constraint import Constraint, Grammars
from gpu_worker.engine.interface import (
    Embedded,
    EmbeddingRequest,
    Engine,
    EngineRequest,
    Event,
    Load,
    MoveEvent,
    MoveOrder,
    Receiver,
    Token,
)
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.move import Move
from gpu_worker.engine.sessions import Sessions


class LocalEngine(Engine):
    """Streams of one `DecodeLoop`. To be used from the event loop it was made in."""

    def __init__(
        self,
        loop: DecodeLoop,
        *,
        max_concurrency: int,
        context_length: int,
        grammars: Grammars | None = None,
    ) -> None:
        self._loop = loop
        self._grammars = grammars
        self._home = asyncio.get_running_loop()
        self._sessions = Sessions(loop, most=2 * max_concurrency, context_length=context_length)
        self.max_concurrency = max_concurrency
        self.context_length = context_length

    async def start(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        events: asyncio.Queue[Event | FirstlightError] = asyncio.Queue()

        def deliver(event: Event | FirstlightError) -> None:
            if not self._home.is_closed():
                self._home.call_soon_threadsafe(events.put_nowait, event)

        constraint = await self._constraint_of(request)
        if request.session_id:
            await self._sessions.until_together(request.session_id)
        active = self._loop.submit(request, deliver, cache=self._cache_of(request), constraint=constraint)
        try:
            while True:
                event = await events.get()
                if isinstance(event, FirstlightError):
                    raise event
                yield event
                if not isinstance(event, Token):
                    return
        finally:
            self._loop.cancel(active)

    async def embed(self, request: EmbeddingRequest) -> AsyncGenerator[Embedded, None]:
        events: asyncio.Queue[Embedded | FirstlightError] = asyncio.Queue()

        def deliver(event: Embedded | FirstlightError) -> None:
            if not self._home.is_closed():
                self._home.call_soon_threadsafe(events.put_nowait, event)

        active = self._loop.submit_embedding(request, deliver)
        try:
            for _ in request.inputs:
                event = await events.get()
                if isinstance(event, FirstlightError):
                    raise event
                yield event
        finally:
            self._loop.cancel(active)

    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        return await self._sessions.receive(parts)

    def drop(self, session_id: str) -> bool:
        return self._sessions.drop(session_id)

    async def move_out(self, order: MoveOrder, receiver: Receiver) -> AsyncGenerator[MoveEvent, None]:
        events: asyncio.Queue[MoveEvent | asyncio.Task[None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(Move(self._loop, active, receiver, order, events.put_nowait).run())
            for active in self._loop.active()
        ]
        for task in tasks:
            # Behind its last event, with its error if it has one.
            task.add_done_callback(events.put_nowait)
        left = len(tasks)
        try:
            while left:
                found = await events.get()
                if isinstance(found, MoveEvent):
                    left -= found.kind != "round"
                    yield replace(found, left=left)
                else:
                    found.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def load(self) -> Load:
        return replace(self._loop.load(), sessions=len(self._sessions))

    def close(self) -> None:
        self._loop.close()

    async def _constraint_of(self, request: EngineRequest) -> Constraint | None:
        if not request.grammar:
            return None
        if self._grammars is None:
            raise InvalidInput("this engine follows no grammars")
        # By a thread: others go on meanwhile.
        return await asyncio.to_thread(
            self._grammars.constraint,
            request.grammar,
            generated=request.resumed_token_ids,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=request.ignore_eos,
        )

    def _cache_of(self, request: EngineRequest) -> KeyValueCache | None:
        if not request.session_id:
            return None
        # A request that is refused must not cost its session.
        self._loop.check(request)
        return self._sessions.take(
            request.session_id, [*request.prompt_token_ids, *request.resumed_token_ids]
        )

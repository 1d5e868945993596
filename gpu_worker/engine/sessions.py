"""Requests that are on their way here: their tokens and caches, round by round, until somebody attaches.

A session that nobody attaches or extends is forgotten after a while; it holds memory and nothing else, and
losing one costs a prefill. Belongs to the engine's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from firstlight.domain.errors import EngineBusy, FirstlightError, InvalidInput
from firstlight.rpc.engine_pb2 import SessionPart
from gpu_worker.engine import cache_wire
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.loop import DecodeLoop

log = logging.getLogger("engine.sessions")

TIME_TO_LIVE_S = 30.0
# Requests that were held at one token boundary are handed over within milliseconds of each other.
TOGETHER_WITHIN_S = 0.015
# Whose last round is older has stopped moving for now.
MOVING_WITHIN_S = 0.1


@dataclass(slots=True, eq=False)
class _Session:
    tokens: list[int] = field(default_factory=list)
    # Of them, the first so many are the prompt's.
    prompt_tokens: int = 0
    cache: KeyValueCache = field(default_factory=KeyValueCache)
    touched_s: float = field(default_factory=time.monotonic)
    is_receiving: bool = False


class Sessions:
    """At most `most` at a time."""

    def __init__(self, loop: DecodeLoop, *, most: int, context_length: int) -> None:
        self._loop = loop
        self._context_length = context_length
        self._most = most
        self._layers = loop.layers
        self._sessions: dict[str, _Session] = {}
        # Sessions whose requests are here, and wait a moment for those that come with them.
        self._here: set[str] = set()
        self._are_together = asyncio.Event()

    def __len__(self) -> int:
        return len(self._sessions)

    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        """One round; how many of its tokens the cache covers now.

        Raises: InvalidInput, EngineBusy (full, or a round of this session is under way), EngineError.
        """
        first = await anext(parts, None)
        if first is None or not first.session_id:
            raise InvalidInput("a session begins with its id")
        session = self._session(first.session_id, is_new=first.HasField("request"))
        session.is_receiving, session.touched_s = True, time.monotonic()
        try:
            await self._extend(session, first, parts)
        except BaseException:
            # Half a round is worth nothing: the source begins anew or goes on by itself. But a newer one of
            # the same name, begun after this one was dropped, is not this one's to end.
            if self._sessions.get(first.session_id) is session:
                del self._sessions[first.session_id]
            raise
        finally:
            session.is_receiving = False
            session.touched_s = time.monotonic()
            asyncio.get_running_loop().call_later(TIME_TO_LIVE_S + 1.0, self.expire)
        return session.cache.length

    async def until_together(self, session_id: str) -> None:
        """Its request is here: wait a moment for those that are moving with it, so that all share a pass.

        The first of them would make the others wait for a pass of its own.
        """
        self._here.add(session_id)
        try:
            if not self._misses_some():
                self._are_together.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(TOGETHER_WITHIN_S):
                    await self._are_together.wait()
        finally:
            self._here.discard(session_id)
            if not self._here:
                self._are_together.clear()

    def _misses_some(self) -> bool:
        since_s = time.monotonic() - MOVING_WITHIN_S
        return any(
            session.touched_s > since_s
            for session_id, session in self._sessions.items()
            if session_id not in self._here
        )

    def take(self, session_id: str, tokens: list[int]) -> KeyValueCache | None:
        """The cache for a request that goes on behind `tokens`, to be its own; None if there is none.

        A session of other tokens is of no use: what it computed is not what this request was given.
        """
        session = self._sessions.pop(session_id, None)
        if session is None:
            log.warning("session=%s is not here: its tokens are computed anew", session_id)
            return None
        if session.is_receiving or session.tokens != tokens[: len(session.tokens)]:
            log.error("session=%s does not fit its request: its tokens are computed anew", session_id)
            return None
        return session.cache

    def drop(self, session_id: str) -> bool:
        return self._sessions.pop(session_id, None) is not None

    def expire(self) -> None:
        """Forget what nobody touched for TIME_TO_LIVE_S."""
        before_s = time.monotonic() - TIME_TO_LIVE_S
        for session_id, session in list(self._sessions.items()):
            if session.touched_s < before_s and not session.is_receiving:
                log.warning("session=%s was never attached", session_id)
                del self._sessions[session_id]

    def _session(self, session_id: str, *, is_new: bool) -> _Session:
        self.expire()
        session = self._sessions.get(session_id)
        if session is not None and session.is_receiving:
            raise EngineBusy(f"a round of session {session_id} is under way already")
        if is_new or session is None:
            # `is_new` for one that exists: its source was restarted or tries once more.
            if not is_new:
                raise InvalidInput(f"session {session_id} is not here; it begins with its request")
            if session is None and len(self._sessions) >= self._most:
                raise EngineBusy(f"{len(self._sessions)} sessions wait here already")
            session = self._sessions[session_id] = _Session()
            # While the bytes come, and before a client waits for its next token.
            self._loop.warm()
        return session

    async def _extend(self, session: _Session, first: SessionPart, parts: AsyncIterator[SessionPart]) -> None:
        # Where each layer's bytes reach; a round is whole when all reach the same token.
        reach: dict[int, int] = {}
        if first.prompt_tokens:
            session.prompt_tokens = first.prompt_tokens
        has_recompute = self._take_part(session, first, reach)
        async for part in parts:
            has_recompute |= self._take_part(session, part, reach)
        if reach:
            self._count(session, reach)
        if has_recompute:
            await self._recompute(session)

    def _take_part(self, session: _Session, part: SessionPart, reach: dict[int, int]) -> bool:
        if part.token_ids:
            if part.from_token != len(session.tokens):
                raise InvalidInput(f"tokens from {part.from_token} do not follow {len(session.tokens)}")
            session.tokens += part.token_ids
            if len(session.tokens) > self._context_length:
                raise InvalidInput(f"a session of more tokens than the context of {self._context_length}")
        for some in part.cache:
            layer, start = some.layer, some.from_token
            if start != reach.get(layer, session.cache.length) or not 0 <= layer < self._layers:
                raise InvalidInput(f"the cache of layer {layer} from {start} does not follow what is here")
            cache_wire.fill(session.cache, some, device=self._loop.device)
            reach[layer] = start + some.tokens
        return part.recompute

    def _count(self, session: _Session, reach: dict[int, int]) -> None:
        ends = set(reach.values())
        if len(reach) != self._layers or len(ends) != 1 or max(ends) >= len(session.tokens) + 1:
            raise InvalidInput("the layers of a cache do not reach the same token")
        session.cache.advance(ends.pop() - session.cache.length)

    async def _recompute(self, session: _Session) -> None:
        """Prefill what the cache lacks; the last token stays out, its scores are wanted when it goes on."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def on_end(failure: FirstlightError | None) -> None:
            loop.call_soon_threadsafe(_finish, done, failure)

        if len(session.tokens) - 1 <= session.cache.length:
            return
        work = self._loop.rebuild(
            session.tokens[:-1], session.cache, on_end, prompt_tokens=session.prompt_tokens
        )
        try:
            await done
        finally:
            self._loop.cancel(work)


def _finish(done: asyncio.Future[None], failure: FirstlightError | None) -> None:
    if done.done():
        return
    if failure is not None:
        done.set_exception(failure)
    else:
        done.set_result(None)

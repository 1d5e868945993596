"""From a journal to a token stream that survives the death of an engine.

The stream goes on behind the tokens already given, on whatever instance has room; at most `MAX_RESUMES`
times, then the client hears a clear error. A token is given once and never taken back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from api.background import Background
from api.embedding_journal import EmbeddingJournal
from api.engine_client import EngineClient, Health
from api.journal import Journal
from api.routing.lane import Lane, Route, Slot
from api.routing.route_table import RouteTable
from firstlight import fault_points
from firstlight.domain.errors import (
    EngineBusy,
    EngineError,
    EngineGone,
    FirstlightError,
    InstanceDraining,
    QueueFull,
    StaleEpoch,
)
from firstlight.domain.lifecycle import InstanceState
from firstlight.rpc import engine_pb2

logger = logging.getLogger(__name__)

MAX_RESUMES = 3
# The instance is not (or no longer) able to run this request; another may be.
ELSEWHERE = (EngineError, InstanceDraining, QueueFull, StaleEpoch)
BUSY_PAUSE_S = 0.05
PROBE_EVERY_S = 0.5
PROBE_AT_MOST_EVERY_S = 5.0

# The slot, when the request went to its engine (monotonic), and what the engine then computed for (seconds).
FirstToken = Callable[[Slot, float, float], None]


@dataclass(frozen=True, slots=True)
class AtEngine:
    """Where one choice of a request, or all its embeddings, is now, and since when (monotonic seconds)."""

    route: Route
    since_s: float


class Dispatcher:
    """`on_first_token(slot, dispatched_s, prefill_s)` hears of the first token of every stream."""

    def __init__(
        self,
        *,
        engines: EngineClient,
        table: RouteTable,
        background: Background,
        on_resume: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._engines = engines
        self._table = table
        self._background = background
        self._on_resume = on_resume
        # What this process asks of engines now; figures for people, nothing is decided by them.
        self.at_engines: dict[Journal | EmbeddingJournal, AtEngine] = {}

    async def tokens(
        self,
        journal: Journal,
        lane: Lane,
        *,
        deadline_s: float,
        on_first_token: FirstToken = lambda slot, dispatched_s, prefill_s: None,
    ) -> AsyncGenerator[engine_pb2.GenerateChunk, None]:
        """Chunks until one carries a finish_reason.

        Raises: QueueFull, StartTimeout, StartFailed, NoCapacity before the first token; EngineError when
        engines failed too often; ContextTooLong and other InvalidInput from the engine.
        """
        refused_by: str | None = None
        while True:
            if journal.moved_to is not None:
                slot = lane.follow(_route_of(journal.moved_to, lane.model))
            else:
                slot = await lane.take(deadline_s=deadline_s, request_id=journal.request_id, avoid=refused_by)
            async with self._at_engine(slot, lane, journal):
                async with aclosing(self._stream(slot, journal, on_first_token)) as stream:
                    async for chunk in stream:
                        yield chunk
                if journal.moved_to is None:
                    return
            if journal.moved_to is None:
                refused_by = slot.route.instance_id

    async def vectors(
        self,
        journal: EmbeddingJournal,
        lane: Lane,
        *,
        deadline_s: float,
        on_first: Callable[[Slot, float, engine_pb2.EmbedChunk], None],
    ) -> None:
        """Until the journal has all its vectors; those that came before an engine failed are kept.

        `on_first(slot, dispatched_s, chunk)` hears of the first of them. Raises: as `tokens`.
        """
        refused_by: str | None = None
        while journal.missing:
            slot = await lane.take(deadline_s=deadline_s, request_id=journal.request_id, avoid=refused_by)
            async with self._at_engine(slot, lane, journal):
                await self._embed(slot, journal, on_first)
            refused_by = slot.route.instance_id

    @asynccontextmanager
    async def _at_engine(
        self, slot: Slot, lane: Lane, journal: Journal | EmbeddingJournal
    ) -> AsyncIterator[None]:
        """The request is there, until it ends or the engine fails it: then it is to go on elsewhere.

        Raises: what failed it, when that happened too often.
        """
        self.at_engines[journal] = AtEngine(slot.route, time.monotonic())
        try:
            yield
        except ELSEWHERE as error:
            await self._after_failure(slot, lane, journal, error)
        finally:
            del self.at_engines[journal]
            lane.give_back(slot)

    async def _embed(
        self,
        slot: Slot,
        journal: EmbeddingJournal,
        on_first: Callable[[Slot, float, engine_pb2.EmbedChunk], None],
    ) -> None:
        dispatched_s = time.monotonic()
        asked = journal.missing
        stream = self._engines.embed(slot.route, journal.to_request(asked, epoch=slot.route.epoch))
        try:
            async for chunk in stream:
                if not journal.vectors:
                    on_first(slot, dispatched_s, chunk)
                journal.vectors[asked[chunk.index]] = chunk.vector
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # InferenceClient.embed is a generator
        if journal.missing:
            raise EngineGone(
                f"instance {slot.route.instance_id} ended without all vectors",
                instance_id=slot.route.instance_id,
            )

    async def _stream(
        self, slot: Slot, journal: Journal, on_first_token: FirstToken
    ) -> AsyncGenerator[engine_pb2.GenerateChunk, None]:
        dispatched_s = time.monotonic()
        stream = self._engines.generate(slot.route, journal)
        # Asked for once: should that engine die too, it goes on from the journal.
        journal.moved_to = None
        try:
            async for chunk in stream:
                if chunk.HasField("migrated"):
                    self._move(journal, chunk.migrated, slot.route)
                    await fault_points.reach("stream moved", of=journal.request_id)
                    return
                if chunk.has_token:
                    if not self._is_next(journal, chunk, slot.route):
                        continue
                    if not journal.emitted:
                        # What it waited for weights is the load's, and is counted there.
                        on_first_token(slot, dispatched_s + chunk.weights_s, chunk.prefill_s)
                    journal.emitted.append(chunk.token_id)
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # InferenceClient.generate is a generator
        raise EngineGone(
            f"instance {slot.route.instance_id} ended its stream without saying why",
            instance_id=slot.route.instance_id,
        )

    def _move(self, journal: Journal, moved: engine_pb2.Migrated, route: Route) -> None:
        """Raises: EngineGone when tokens before the seam have not come, which must not be skipped."""
        if moved.position != len(journal.emitted):
            raise EngineGone(
                f"instance {route.instance_id} handed over at token {moved.position}, "
                f"but gave {len(journal.emitted)}",
                instance_id=route.instance_id,
            )
        journal.moved_to = moved
        journal.moves += 1
        logger.info(
            "request %s moved from %s to %s at token %d",
            journal.request_id,
            route.instance_id,
            moved.instance_id,
            moved.position,
        )

    def _is_next(self, journal: Journal, chunk: engine_pb2.GenerateChunk, route: Route) -> bool:
        """False for a token that was given already. Raises: EngineGone for a gap, which must not be shown."""
        expected = len(journal.emitted)
        if chunk.position > expected:
            raise EngineGone(
                f"instance {route.instance_id} gave token {chunk.position} where {expected} was due",
                instance_id=route.instance_id,
            )
        return chunk.position == expected

    async def _after_failure(
        self, slot: Slot, lane: Lane, journal: Journal | EmbeddingJournal, error: FirstlightError
    ) -> None:
        route = slot.route
        journal.resumes += 1
        logger.warning(
            "request %s: instance %s failed at %s %d (%s); resume %d of %d",
            journal.request_id,
            route.instance_id,
            "token" if isinstance(journal, Journal) else "vector",
            journal.given,
            error.message,
            journal.resumes,
            MAX_RESUMES,
        )
        if journal.resumes > MAX_RESUMES:
            raise error
        self._on_resume(route.model)
        if isinstance(error, EngineBusy | QueueFull):
            # Another replica of the API took the place; it is well, only full.
            await asyncio.sleep(BUSY_PAUSE_S * 2**journal.resumes)
        elif lane.suspect(route):
            self._background.start(self._examine(lane, route), name=f"examine {route.instance_id}")

    async def _examine(self, lane: Lane, route: Route) -> None:
        """Ask a suspected engine until it is well or gone; the database's word ends this at any time."""
        pause_s = PROBE_EVERY_S
        while self._table.state_of(route.instance_id) is InstanceState.READY:
            health = await self._engines.health(route)
            if health is Health.WELL:
                lane.trust(route)
                return
            if health is Health.GONE:
                # It stays suspected until the database has learnt of its end too.
                return
            await asyncio.sleep(pause_s)
            pause_s = min(PROBE_AT_MOST_EVERY_S, 2 * pause_s)


def _route_of(moved: engine_pb2.Migrated, model: str) -> Route:
    return Route(
        instance_id=moved.instance_id,
        model=model,
        host_id="",
        endpoint=moved.endpoint,
        epoch=moved.epoch,
        max_concurrency=1,
    )

"""The decode loop: one thread runs forward passes for all active requests and hands out their tokens."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from firstlight.domain.errors import EngineError, EngineGone, FirstlightError, InvalidInput, QueueFull
from gpu_worker.engine.active_embedding import (
    ActiveEmbedding,
    DeliverVector,
    EmbeddingInput,
    shares_of,
    validate_embedding,
)
from gpu_worker.engine.attention import Span, attending
from gpu_worker.engine.constraint import Constraint
from gpu_worker.engine.interface import EmbeddingRequest, EngineRequest, Finished, Load, Moved, Token
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.requests import ActiveRequest, Deliver, Rebuild, validate
from gpu_worker.engine.sampling import choose, top_logprobs
from gpu_worker.engine.skeleton import Skeleton
from gpu_worker.engine.step_plan import CHUNKS_WHILE_LOADING, cut, plan_step

log = logging.getLogger(__name__)

Work = ActiveRequest | ActiveEmbedding | Rebuild
# What of it one pass holds: all of it, or one input of many.
Part = ActiveRequest | EmbeddingInput | Rebuild

# What torch raises for one request's sake: out of memory, shapes, numerics.
# Weights that were read so lately are near; caches and page tables of the machine below forget others.
WARM_FOR_S = 2.0
_STEP_FAILURES = (RuntimeError, ValueError, IndexError, MemoryError)


class DecodeLoop:
    """Up to `max_concurrency` requests run, up to `max_waiting` more wait, first come first served.

    `submit` and `cancel` may be called from any thread; events are delivered from the loop's own.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        device: str,
        max_concurrency: int,
        max_waiting: int,
        context_length: int,
        chunk_tokens: int,
        on_crash: Callable[[], None],
        on_lost: Callable[[EngineGone], None] = lambda why: None,
        stood_still_s: Callable[[], float] = lambda: 0.0,
        is_loading: Callable[[], bool] = lambda: False,
    ) -> None:
        self._skeleton = skeleton
        self.layers = skeleton.layers
        self.device = device
        self._max_concurrency = max_concurrency
        self._max_waiting = max_waiting
        self._context_length = context_length
        self._chunk_tokens = chunk_tokens
        self._on_crash = on_crash
        self._on_lost = on_lost
        self._stood_still_s = stood_still_s
        self._is_loading = is_loading
        self._changed = threading.Condition()
        self._waiting: deque[ActiveRequest | ActiveEmbedding] = deque()
        self._running: list[Work] = []
        # Taken out at a token boundary, until they go on here or elsewhere.
        self._held: list[ActiveRequest] = []
        self._is_closing = False
        self._tokens_generated = 0
        self._passed_s = -math.inf
        self._thread = threading.Thread(target=self._run, name="decode-loop", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: EngineRequest,
        deliver: Deliver,
        *,
        cache: KeyValueCache | None = None,
        constraint: Constraint | None = None,
    ) -> ActiveRequest:
        """`cache` holds what was computed elsewhere for the tokens that the request begins with.

        Raises: InvalidInput, ContextTooLong, QueueFull, EngineGone.
        """
        self.check(request)
        active = ActiveRequest(request, deliver, cache=cache, constraint=constraint)
        self._enqueue(active)
        return active

    def submit_embedding(self, request: EmbeddingRequest, deliver: DeliverVector) -> ActiveEmbedding:
        """Raises: InvalidInput, ContextTooLong, QueueFull, EngineGone."""
        if (embedding := self._skeleton.embedding) is None:
            raise InvalidInput(
                "this model has no embeddings: its checkpoint does not say how they are pooled"
            )
        validate_embedding(
            request, context_length=self._context_length, vocabulary_size=self._skeleton.vocabulary_size
        )
        active = ActiveEmbedding(request, embedding, deliver)
        self._enqueue(active)
        return active

    def _enqueue(self, active: ActiveRequest | ActiveEmbedding) -> None:
        with self._changed:
            if self._is_closing:
                raise EngineGone("the engine is shutting down")
            if self._places_taken() + len(self._waiting) >= self._max_concurrency + self._max_waiting:
                raise QueueFull(f"{len(self._waiting)} requests are waiting already")
            self._waiting.append(active)
            self._changed.notify()

    def check(self, request: EngineRequest) -> None:
        """Raises: InvalidInput, ContextTooLong."""
        if not self._skeleton.has_head:
            raise InvalidInput("this model only embeds: it has no head to generate text with")
        validate(request, context_length=self._context_length, vocabulary_size=self._skeleton.vocabulary_size)

    def cancel(self, active: Work) -> None:
        """Free its slot before the next pass; nothing more is delivered. Fine for what has ended."""
        with self._changed:
            active.is_cancelled = True
            self._changed.notify()

    def rebuild(
        self,
        tokens: list[int],
        cache: KeyValueCache,
        on_end: Callable[[FirstlightError | None], None],
        *,
        prompt_tokens: int,
    ) -> Rebuild:
        """Compute `cache` on to cover `tokens`, among the passes of others; `on_end` from the loop's thread.

        The first `prompt_tokens` are the prompt's. Raises: EngineGone.
        """
        work = Rebuild(tokens, cache, on_end, prompt_tokens=prompt_tokens)
        with self._changed:
            if self._is_closing:
                raise EngineGone("the engine is shutting down")
            self._running.append(work)
            self._changed.notify()
        return work

    def warm(self) -> None:
        """Compute a token for nobody if none was computed for a while: who comes next finds the weights near.

        The first pass over weights that nobody has touched lately takes up to five times as long.
        """
        with self._changed:
            if (
                self._is_closing
                or self._running
                or self._waiting
                or time.monotonic() - self._passed_s < WARM_FOR_S
            ):
                return
            work = Rebuild([0], KeyValueCache(), lambda failure: None, prompt_tokens=1)
            self._running.append(work)
            self._changed.notify()

    def active(self) -> tuple[ActiveRequest, ...]:
        """All generations that have not ended, those that wait for a slot included."""
        with self._changed:
            found = self._all_active()
        return tuple(
            active for active in found if isinstance(active, ActiveRequest) and not active.is_cancelled
        )

    def hold(self, active: ActiveRequest, on_held: Callable[[], None]) -> bool:
        """Take it out at its next token boundary and call `on_held`; False if it has ended by itself.

        It keeps its slot until `release`, `hand_over` or `cancel`.
        """
        with self._changed:
            if active.is_ended or active.is_cancelled:
                return False
            active.on_held = on_held
            self._changed.notify()
        return True

    def release(self, active: ActiveRequest) -> None:
        """Let a held request go on here; one that is still to be held is not held any more."""
        with self._changed:
            active.on_held = None
            if active in self._held:
                self._held.remove(active)
                self._running.append(active)
            self._changed.notify()

    def hand_over(self, active: ActiveRequest, moved: Moved) -> None:
        """End a held request here: it goes on elsewhere."""
        self._end(active, moved)

    def load(self) -> Load:
        with self._changed:
            return Load(
                running=self._places_taken(),
                waiting=len(self._waiting),
                tokens_generated=self._tokens_generated,
                request_tokens=sum(len(one.tokens) for one in self._all_active()),
            )

    def close(self) -> None:
        """Deliver EngineGone to all and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        why = EngineGone("the engine stopped")
        try:
            while self._admit():
                self._step()
        except EngineGone as failure:
            # What the model computes with will not come: no request can be served any more.
            why = failure
            self._on_lost(failure)
        except Exception:  # the loop is this thread's outermost: a bug here must end the engine, not hang it
            log.exception("decode loop crashed")
            self._on_crash()
        finally:
            self._abandon(why)

    def _admit(self) -> bool:
        """Drop the cancelled, fill the slots; wait while there is nobody. False when it is time to end."""
        with self._changed:
            while True:
                self._drop_cancelled()
                self._take_out_held()
                while self._waiting and self._places_taken() < self._max_concurrency:
                    active = self._waiting.popleft()
                    active.admitted_s = time.monotonic()
                    active.stood_still_s = self._stood_still_s()
                    self._running.append(active)
                if self._running or self._is_closing:
                    return not self._is_closing
                self._changed.wait()

    def _all_active(self) -> tuple[ActiveRequest | ActiveEmbedding, ...]:
        running = [one for one in self._running if not isinstance(one, Rebuild)]
        return (*running, *self._held, *self._waiting)

    def _places_taken(self) -> int:
        return sum(one.takes_place for one in self._running) + len(self._held)

    def _drop_cancelled(self) -> None:
        for one in (*self._running, *self._held, *self._waiting):
            if one.is_cancelled:
                _tell_holder(one)
        self._running = [one for one in self._running if not one.is_cancelled]
        self._held = [active for active in self._held if not active.is_cancelled]
        self._waiting = deque(active for active in self._waiting if not active.is_cancelled)

    def _take_out_held(self) -> None:
        """Between two passes every request stands at a token boundary, or in the midst of its prompt."""
        asked = [*self._running, *self._waiting]
        for active in asked:
            if not isinstance(active, ActiveRequest) or active.on_held is None:
                continue
            if active in self._waiting:
                self._waiting.remove(active)
            else:
                self._running.remove(active)
            self._held.append(active)
            _tell_holder(active, has_ended=False)

    def _abandon(self, why: EngineGone) -> None:
        with self._changed:
            self._is_closing = True
            left = [*self._running, *self._held, *self._waiting]
            self._running, self._held, self._waiting = [], [], deque()
            for active in left:
                _tell_holder(active)
        for active in left:
            active.deliver(why)

    def _step(self) -> None:
        # Those that come with all their tokens: a stream whose end alone was lost with its engine.
        for active in list(self._running):
            if active.is_complete:
                self._end(active, Finished("stop"))
            elif active.is_full or not active.pending_tokens:
                self._end(active, Finished("length"))
        chunks = CHUNKS_WHILE_LOADING if self._is_loading() else 1
        most_tokens = chunks * self._chunk_tokens
        parts = [part for active in self._running for part in active.parts(most_tokens)]
        plan = [(parts[index], tokens) for index, tokens in plan_step(parts, chunk_tokens=most_tokens)]
        if not plan:
            return
        try:
            self._pass(plan)
        except _STEP_FAILURES as failure:
            log.warning("a pass of %d requests failed, running them one by one: %s", len(plan), failure)
            self._pass_singly(plan)

    def _pass_singly(self, plan: Sequence[tuple[Part, int]]) -> None:
        """Find who made a pass fail; the others go on. Caches count a pass only when all of it succeeded."""
        for part, tokens in plan:
            if part.work.is_ended:
                continue
            try:
                self._pass([(part, tokens)])
            except _STEP_FAILURES as failure:
                self._end(part.work, EngineError(f"the model failed on this request: {failure}"))

    def _pass(self, plan: Sequence[tuple[Part, int]]) -> None:
        token_ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        spans: list[Span] = []
        ready: list[ActiveRequest] = []
        pooled: list[tuple[EmbeddingInput, Span]] = []
        for active, tokens in plan:
            start = active.cached_tokens
            ahead = 0
            # On a GPU a span for each token would cost many launches, and nothing is exact there anyway.
            prompt_tokens = active.prompt_tokens if self.device == "cpu" else None
            for length in cut(start, tokens, chunk_tokens=self._chunk_tokens, prompt_tokens=prompt_tokens):
                offset = len(token_ids) + ahead
                spans.append(Span(cache=active.cache, offset=offset, length=length, ahead=ahead))
                if isinstance(active, EmbeddingInput):
                    pooled.append((active, spans[-1]))
                ahead += length
            if tokens == active.pending_tokens and isinstance(active, ActiveRequest):
                ready.append(active)
                rows.append(len(token_ids) + tokens - 1)
            token_ids += active.tokens[start : start + tokens]
            positions += range(start, start + tokens)
        with attending(spans), self._states(is_wanted=bool(pooled)) as states:
            scores = self._skeleton.logits(
                *(
                    # Typed, because a pass that only rebuilds has no rows.
                    torch.tensor(values, dtype=torch.int64, device=self.device)
                    for values in (token_ids, positions, rows)
                )
            ).float()
            # Inside: on a GPU a pass has succeeded only when its result has arrived.
            scores = scores.cpu()
            shares = shares_of(pooled, states[0]) if pooled else ()
        self._passed_s = time.monotonic()
        for active, row in zip(ready, scores, strict=True):
            self._emit(active, row)
        for (part, span), share in zip(pooled, shares, strict=True):
            part.pool.add(share, tokens=span.length)
        for part in dict.fromkeys(part for part, _ in pooled):
            # Another input of the same request may have ended it.
            if not part.pending_tokens and not part.work.is_ended:
                self._give(part)

    def _states(self, *, is_wanted: bool) -> AbstractContextManager[list[torch.Tensor]]:
        return self._skeleton.keeping_states() if is_wanted else nullcontext([])

    def _give(self, part: EmbeddingInput) -> None:
        work = part.work
        try:
            vector = part.pool.vector()
        except _STEP_FAILURES as failure:
            self._end(work, EngineError(f"no vector could be made: {failure}"))
            return
        event = work.event(part, vector, stood_still_s=self._stood_still_s())
        if work.has_ended(part):
            # Before it is told: who has the last vector holds no place.
            self._take_away(work)
        else:
            self._let_others_first(work)
        work.deliver(event)

    def _let_others_first(self, work: ActiveEmbedding) -> None:
        """A list of inputs may be longer than any prompt: who comes behind it waits for one at most."""
        with self._changed:
            self._running.remove(work)
            self._running.append(work)

    def _emit(self, active: ActiveRequest, scores: torch.Tensor) -> None:
        try:
            event = self._next(active, scores)
            if isinstance(event, Finished):
                self._end(active, event)
                return
            active.append(event.token_id)
        except _STEP_FAILURES as failure:
            self._end(active, EngineError(f"no token could be chosen: {failure}"))
            return
        except InvalidInput as failure:
            # Of its grammar: another engine would fail in the same way.
            self._end(active, failure)
            return
        self._tokens_generated += 1
        active.deliver(event)
        if active.is_complete:
            self._end(active, Finished("stop"))
        elif active.is_full:
            self._end(active, Finished("length"))

    def _next(self, active: ActiveRequest, scores: torch.Tensor) -> Token | Finished:
        request = active.request
        if bool(scores.isnan().any()):
            raise ValueError("the model's scores are not numbers")
        token_id = choose(
            scores,
            request.sampling,
            position=active.position,
            prompt=request.prompt_token_ids,
            generated=active.generated,
            allowed=active.constraint.allowed() if active.constraint is not None else None,
        )
        is_eos = token_id in self._skeleton.eos_token_ids and not request.ignore_eos
        if is_eos or token_id in request.stop_token_ids:
            return Finished("stop")
        logprob, alternatives = (
            top_logprobs(scores, token_id, request.top_logprobs) if request.logprobs else (None, ())
        )
        now = time.monotonic()
        weights_s = self._stood_still_s() - active.stood_still_s
        return Token(
            position=active.position,
            token_id=token_id,
            logprob=logprob,
            top_logprobs=alternatives,
            queue_s=active.admitted_s - active.submitted_s if active.is_first else 0.0,
            prefill_s=now - active.admitted_s - weights_s if active.is_first else 0.0,
            weights_s=weights_s if active.is_first else 0.0,
        )

    def _end(self, active: Work, event: Finished | Moved | FirstlightError) -> None:
        self._take_away(active)
        if isinstance(active, ActiveEmbedding):
            assert isinstance(event, FirstlightError), "vectors are neither finished nor moved"
            active.deliver(event)
        else:
            active.deliver(event)

    def _take_away(self, active: Work) -> None:
        with self._changed:
            self._running = [other for other in self._running if other is not active]
            self._held = [other for other in self._held if other is not active]
            _tell_holder(active)
            self._changed.notify()


def _tell_holder(active: Work, *, has_ended: bool = True) -> None:
    """Who waits for its next token boundary hears of it; with `has_ended`, that it was the last one."""
    active.is_ended = has_ended
    if isinstance(active, ActiveRequest) and active.on_held is not None:
        on_held, active.on_held = active.on_held, None
        on_held()

"""What one choice's stream says of how fast it was: figures for Prometheus, and phases for its trace."""

from __future__ import annotations

import time

from api.journal import Journal
from api.metrics import Metrics
from api.routing.lane import Slot
from firstlight.rpc import engine_pb2
from firstlight.telemetry import tracing


class ChoiceFigures:
    """`arrived_s` is when its request came in (monotonic). Told of every chunk; costs microseconds."""

    def __init__(self, metrics: Metrics, model: str, journal: Journal, *, arrived_s: float) -> None:
        self._metrics = metrics
        self._model = model
        self._figures = metrics.of(model)
        self._journal = journal
        self._arrived_s = arrived_s
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tokens = 0
        self._seams = (0, 0)
        self._waited_s = 0.0

    def placed(self, slot: Slot) -> None:
        """It has waited so long for a place or a start, and its first token is here."""
        self._waited_s = slot.waited_s
        self._figures.queue_s.observe(slot.waited_s)

    def heard(self, chunk: engine_pb2.GenerateChunk) -> None:
        if not chunk.has_token:
            return
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            self._begin(chunk, now_s)
        else:
            gap_s = now_s - self._last_s
            self._figures.inter_token_s.observe(gap_s)
            seams = (self._journal.moves, self._journal.resumes)
            if seams != self._seams:
                self._pause(seams, gap_s)
        self._last_s = now_s
        self._tokens += 1

    def ended(self, reason: str) -> None:
        """Its last token is out."""
        self._metrics.finished(self._model, reason)
        if self._first_s is None:
            return
        decoded_s = self._last_s - self._first_s
        self._figures.decode_s.observe(decoded_s)
        if self._tokens > 1:
            self._figures.per_token_s.observe(decoded_s / (self._tokens - 1))
        tracing.past("decode", began_s=self._first_s, ended_s=self._last_s)

    def _begin(self, chunk: engine_pb2.GenerateChunk, now_s: float) -> None:
        self._seams = (self._journal.moves, self._journal.resumes)
        self._figures.first_token_s.observe(now_s - self._arrived_s)
        self._figures.engine_queue_s.observe(self._waited_s + chunk.queue_s)
        self._figures.prefill_s.observe(chunk.prefill_s)
        if tracing.is_on():
            tracing.annotate({"gen_ai.response.time_to_first_chunk": now_s - self._arrived_s})

    def _pause(self, seams: tuple[int, int], gap_s: float) -> None:
        """A stream that failed and moved between two tokens paused for the failure."""
        has_failed = seams[1] != self._seams[1]
        pause_s = self._figures.resume_pause_s if has_failed else self._figures.migration_pause_s
        pause_s.observe(gap_s)
        self._seams = seams
        tracing.past(
            "resume" if has_failed else "migration pause",
            began_s=time.monotonic() - gap_s,
            ended_s=time.monotonic(),
        )

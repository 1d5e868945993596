"""What a request's time in the engine went to, as children of its span; for a process that sends traces."""

from __future__ import annotations

import time

from firstlight.telemetry import tracing
from gpu_worker.engine.interface import EngineRequest, Event, Token


class TracedPhases:
    """Told of every event of one request, within its span."""

    def __init__(self, request: EngineRequest, *, model: str) -> None:
        self._first_s: float | None = None
        self._tokens = 0
        tracing.annotate(
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "firstlight",
                "gen_ai.request.model": model,
                "gen_ai.usage.input_tokens": len(request.prompt_token_ids),
                "firstlight.request_id": request.request_id,
                "firstlight.resumed_tokens": len(request.resumed_token_ids),
            }
        )

    def heard(self, event: Event) -> None:
        if isinstance(event, Token):
            self._tokens += 1
            if self._first_s is None:
                self._first_s = time.monotonic()
                self._until_first(event, self._first_s)
            return
        if self._first_s is not None:
            tracing.past("decode", began_s=self._first_s, ended_s=time.monotonic())
        tracing.annotate({"gen_ai.usage.output_tokens": self._tokens})

    def _until_first(self, token: Token, now_s: float) -> None:
        """Told as one after the other; while weights come in, computing and waiting for them take turns."""
        ended_s = now_s
        for name, took_s in (
            ("prefill", token.prefill_s),
            ("weights", token.weights_s),
            ("queue", token.queue_s),
        ):
            if took_s > 0:
                tracing.past(name, began_s=ended_s - took_s, ended_s=ended_s)
            ended_s -= took_s

"""The figures that every deployed model has, and their end when it is deployed no more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

MODEL = "model_name"
_WAIT_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
_QUEUE_BUCKETS = (0.001, 0.005, *_WAIT_BUCKETS)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_PAUSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0)
_COUNT_BUCKETS = tuple(float(2**power) for power in range(18))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model's children, looked up once: a lookup by label costs more than an observation."""

    first_token_s: Histogram
    inter_token_s: Histogram
    per_token_s: Histogram
    request_s: Histogram
    engine_queue_s: Histogram
    prefill_s: Histogram
    decode_s: Histogram
    queue_s: Histogram
    migration_pause_s: Histogram
    resume_pause_s: Histogram
    request_prompt_tokens: Histogram
    request_generation_tokens: Histogram
    prompt_tokens: Counter
    generation_tokens: Counter
    resumes: Counter


class ModelFamilies:
    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, (MODEL,), buckets=buckets, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, (MODEL,), registry=registry)

        wait, token = _WAIT_BUCKETS, _TOKEN_BUCKETS
        self._families: dict[str, Histogram | Counter] = {
            "first_token_s": histogram("vllm:time_to_first_token_seconds", "Request to first token.", wait),
            "inter_token_s": histogram(
                "vllm:inter_token_latency_seconds", "Between two tokens of a stream.", token
            ),
            "per_token_s": histogram(
                "vllm:request_time_per_output_token_seconds", "TPOT: a request's mean, first aside.", token
            ),
            "request_s": histogram("vllm:e2e_request_latency_seconds", "Request to end of answer.", wait),
            "engine_queue_s": histogram(
                "vllm:request_queue_time_seconds",
                "Waited for a place or a start, then in the engine.",
                _QUEUE_BUCKETS,
            ),
            "prefill_s": histogram("vllm:request_prefill_time_seconds", "The engine's first token.", wait),
            "decode_s": histogram("vllm:request_decode_time_seconds", "First to last token.", wait),
            "queue_s": histogram(
                "firstlight_queue_seconds", "Waited for a place or a start.", _QUEUE_BUCKETS
            ),
            "migration_pause_s": histogram(
                "firstlight_migration_pause_seconds",
                "Between two tokens, around a hand-over.",
                _PAUSE_BUCKETS,
            ),
            "resume_pause_s": histogram(
                "firstlight_resume_pause_seconds", "Between two tokens, around a failure.", _PAUSE_BUCKETS
            ),
            "request_prompt_tokens": histogram(
                "vllm:request_prompt_tokens", "Prompt tokens of a request.", _COUNT_BUCKETS
            ),
            "request_generation_tokens": histogram(
                "vllm:request_generation_tokens", "Tokens generated for a request.", _COUNT_BUCKETS
            ),
            "prompt_tokens": counter("vllm:prompt_tokens", "Prompt tokens taken."),
            "generation_tokens": counter("vllm:generation_tokens", "Tokens generated."),
            "resumes": counter("firstlight_resumes", "Streams that went on elsewhere after a failure."),
        }
        self._success = Counter(
            "vllm:request_success",
            "Choices that came to their end.",
            (MODEL, "finished_reason"),
            registry=registry,
        )
        self._of: dict[str, ModelFigures] = {}

    def of(self, model: str) -> ModelFigures:
        found = self._of.get(model)
        if found is None:
            # mypy cannot see that each field gets its own kind.
            children = {name: family.labels(model) for name, family in self._families.items()}
            found = self._of[model] = ModelFigures(**children)  # type: ignore[arg-type]
        return found

    def finished(self, model: str, reason: str) -> None:
        if model in self._of:
            self._success.labels(model, reason).inc()

    def keep(self, deployed: Collection[str]) -> None:
        """Forget every other model: those that ever were would be without bound."""
        for model in self._of.keys() - set(deployed):
            del self._of[model]
            for family in self._families.values():
                family.remove(model)
            self._success.remove_by_labels({MODEL: model})

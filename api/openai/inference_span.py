"""The span of one inference, by OpenTelemetry's conventions for generative AI; no prompt, no answer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

from api.openai.fields import GenerationFields
from firstlight.telemetry import tracing

Operation = Literal["chat", "text_completion", "embeddings"]
_ASKED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}


# Any: a span, of which nobody here needs to know more.
def inference_span(
    operation: Operation, model: str, asked: GenerationFields | None, *, request_id: str
) -> AbstractContextManager[Any]:
    """What `asked` sets is told; the rest has its defaults."""
    if not tracing.is_on():
        return tracing.span(operation)
    told: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "firstlight",
        "gen_ai.request.model": model,
        "firstlight.request_id": request_id,
    }
    for name, attribute in _ASKED.items():
        if (
            asked is not None
            and name in asked.model_fields_set
            and (value := getattr(asked, name)) is not None
        ):
            told[attribute] = value
    return tracing.span(f"{operation} {model}", kind="client", attributes=told)


def note_answer(*, model: str, prompt_tokens: int, generated_tokens: int, reasons: list[str]) -> None:
    """On the span of the inference that is under way."""
    if tracing.is_on():
        tracing.annotate(
            {
                "gen_ai.response.model": model,
                "gen_ai.response.finish_reasons": tuple(reasons),
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.output_tokens": generated_tokens,
            }
        )

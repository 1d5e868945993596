"""Requests as they may be written. Types are strict: what is not understood is refused, never guessed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_CHOICES = 128
MOST_STOPS = 16

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class GenerationFields(Strict):
    """What both endpoints take. Defaults are OpenAI's; `top_k`, `min_p` and the like are vLLM's."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(default=1.0, ge=0, le=1)
    top_k: int | None = Field(default=0, ge=-1, description="0 or -1: off.")
    min_p: float | None = Field(default=0.0, ge=0, le=1)
    n: int | None = Field(default=1, ge=1, le=MOST_CHOICES)
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = None
    seed: Seed | None = Field(default=None, description="Choice i of n uses seed + i.")
    presence_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=1.0, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="Token id (as a string) to bias."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = False
    user: str | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None


class ChatRequest(GenerationFields):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, object] | None = Field(
        default=None, description="Handed to the model's chat template."
    )


class CompletionRequest(GenerationFields):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = False

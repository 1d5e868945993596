"""Requests as they may be written. Types are strict: what is not understood is refused, never guessed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_BEST_OF = 20
MOST_TOOLS = 128
MOST_INPUTS = 2048

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class Bookkeeping(Strict):
    """For the caller's own books: they change nothing of the answer, so that any value will do."""

    metadata: object = Field(default=None, description="Without effect.")
    safety_identifier: object = Field(default=None, description="Without effect.")
    prompt_cache_key: object = Field(default=None, description="Without effect.")


class GenerationFields(Bookkeeping):
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


class CalledFunction(Strict):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class CalledTool(Strict):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None


# Any: a JSON Schema.
class JsonSchema(Strict):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="The answer fits the schema either way.")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, which needs it")
        return self


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON Schema of an object.")
    strict: bool | None = Field(
        default=None, description="Arguments fit the schema wherever calls are forced."
    )


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: str


class ChosenTool(Strict):
    type: Literal["function"]
    function: ChosenFunction


class ChatRequest(GenerationFields):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = True
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, object] | None = Field(
        default=None, description="Handed to the model's chat template."
    )


class CompletionRequest(GenerationFields):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = False
    best_of: int | None = Field(
        default=None, ge=1, le=MOST_BEST_OF, description="Choices to generate; the n likeliest are answered."
    )


class EmbeddingRequest(Bookkeeping):
    """Texts, or tokens as they are. Numbers are float32, in base64 little-endian."""

    model: str
    input: (
        Annotated[str, StringConstraints(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[list[TokenId]], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(
        default=None, ge=1, description="So many figures of each vector, brought back to length 1."
    )
    user: str | None = None

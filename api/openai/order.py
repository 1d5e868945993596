"""What a validated request asks of the engines: prompts in tokens, a journal per choice, limits checked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.journal import Journal, SamplingChoice
from api.openai.calling import Calling, calling_of
from api.openai.fields import ChatRequest, CompletionRequest, GenerationFields
from api.openai.grammars import response_grammar
from api.openai.messages import template_messages, template_tools
from api.text.model_text import ModelText
from firstlight.database.models_repository import ModelRecord
from firstlight.domain.errors import ContextTooLong, InvalidInput, UnsupportedParameter

# Encoding a text this long takes so many milliseconds that other streams would feel it.
LONG_TEXT = 16_384
LEGACY_MAX_TOKENS = 16
MOST_JOURNALS = 256
# For models whose config.json gives no limit.
DEFAULT_MAX_TOKENS = 2048
# The engine reads 0 as "off"; asking for nothing but the likeliest token is this.
NARROWEST_TOP_P = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    index: int
    journal: Journal
    # What `echo` puts in front.
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class BestOf:
    """Of each `of` choices, the `given` likeliest are answered."""

    given: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request, ready to be dispatched."""

    record: ModelRecord
    text: ModelText
    choices: tuple[Choice, ...]
    stops: tuple[str, ...]
    prompt_tokens: int
    shows_logprobs: bool
    calling: Calling | None = None
    best: BestOf | None = None


async def order_chat(request: ChatRequest, *, record: ModelRecord, text: ModelText, request_id: str) -> Order:
    """Raises: InvalidInput, ContextTooLong."""
    if request.top_logprobs and not request.logprobs:
        raise InvalidInput("top_logprobs needs logprobs to be true", param="top_logprobs")
    require_head(record, text)
    calling = calling_of(request, text)
    grammar = response_grammar(request.response_format) if calling is None else calling.grammar
    messages = template_messages(request.messages)
    tools = None if calling is None else template_tools(calling.tools)
    length = sum(len(str(message)) for message in (*messages, *(tools or ())))

    def encode() -> list[int]:
        return text.encode_chat(
            messages,
            add_generation_prompt=request.add_generation_prompt,
            extra=request.chat_template_kwargs,
            tools=tools,
        )

    ids = await asyncio.to_thread(encode) if length > LONG_TEXT else encode()
    wanted = request.max_completion_tokens or request.max_tokens
    return _order(
        request,
        [(ids, "")],
        record=record,
        text=text,
        request_id=request_id,
        wanted=wanted,
        logprobs=request.top_logprobs or 0 if request.logprobs else None,
        param="messages",
        count=request.n or 1,
        grammar=grammar,
        calling=calling,
    )


async def order_completion(
    request: CompletionRequest, *, record: ModelRecord, text: ModelText, request_id: str
) -> Order:
    """Raises: InvalidInput, UnsupportedParameter, ContextTooLong."""
    require_head(record, text)
    if request.echo and request.logprobs is not None:
        raise UnsupportedParameter("log-probabilities of the prompt are not served", param="echo")
    best = BestOf(given=request.n or 1, of=request.best_of or request.n or 1)
    if best.of < best.given:
        raise InvalidInput("best_of is at least n", param="best_of")
    if best.of > best.given and request.stream:
        raise InvalidInput(
            "which choices are best is known at the end: it cannot be streamed", param="best_of"
        )
    prompts = [await _prompt_ids(prompt, text) for prompt in _prompts(request)]
    return _order(
        request,
        [(ids, text.decode(ids) if request.echo else "") for ids in prompts],
        record=record,
        text=text,
        request_id=request_id,
        wanted=request.max_tokens or LEGACY_MAX_TOKENS,
        logprobs=request.logprobs,
        param="prompt",
        count=best.of,
        best=best if best.of > best.given else None,
    )


def _order(
    request: GenerationFields,
    prompts: Sequence[tuple[list[int], str]],
    *,
    record: ModelRecord,
    text: ModelText,
    request_id: str,
    wanted: int | None,
    logprobs: int | None,
    param: str,
    count: int,
    grammar: str = "",
    calling: Calling | None = None,
    best: BestOf | None = None,
) -> Order:
    """`count` choices of each prompt; `logprobs` None: they are not shown."""
    if not prompts or len(prompts) * count > MOST_JOURNALS:
        raise InvalidInput(f"between 1 and {MOST_JOURNALS} choices in all", param=param)
    limit = context_limit(record, text)
    bias = _logit_bias(request.logit_bias, text)
    seed = secrets.randbits(64) if request.seed is None else request.seed
    choices = []
    for prompt_index, (ids, prefix) in enumerate(prompts):
        check_ids(ids, text, param=param)
        max_tokens = token_budget(len(ids), wanted, limit=limit, param=param)
        for copy in range(count):
            index = prompt_index * count + copy
            journal = Journal(
                request_id=request_id if len(prompts) * count == 1 else f"{request_id}-{index}",
                prompt_token_ids=ids,
                sampling=_sampling(request, seed=(seed + copy) % 2**64, bias=bias),
                max_tokens=max_tokens,
                stop_token_ids=() if request.ignore_eos else text.end_token_ids,
                ignore_eos=bool(request.ignore_eos),
                logprobs=logprobs is not None or best is not None,
                top_logprobs=logprobs or 0,
                grammar=grammar,
            )
            choices.append(Choice(index, journal, prefix))
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Order(
        record=record,
        text=text,
        choices=tuple(choices),
        stops=tuple(stops),
        prompt_tokens=sum(len(ids) for ids, _ in prompts),
        shows_logprobs=logprobs is not None,
        calling=calling,
        best=best,
    )


def require_head(record: ModelRecord, text: ModelText) -> None:
    """Raises: UnsupportedParameter for a model that only embeds."""
    if text.embedding is not None and not text.embedding.generates:
        raise UnsupportedParameter(
            f"model {record.name!r} only embeds: ask it at /v1/embeddings", param="model", model=record.name
        )


def context_limit(record: ModelRecord, text: ModelText) -> int | None:
    """The deployer's limit and the model's own, whichever is less; None where neither says."""
    limits = [limit for limit in (record.context_length or None, text.context_length) if limit is not None]
    return min(limits, default=None)


def token_budget(prompt_tokens: int, wanted: int | None, *, limit: int | None, param: str) -> int:
    """How many tokens may be generated. Raises: ContextTooLong."""
    if limit is None:
        return wanted or DEFAULT_MAX_TOKENS
    if prompt_tokens + (wanted or 1) > limit:
        asked = "" if wanted is None else f" and {wanted} more were asked for"
        raise ContextTooLong(
            f"the model's context is {limit} tokens; the prompt has {prompt_tokens}{asked}", param=param
        )
    return wanted or limit - prompt_tokens


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[int(token) for token in prompt]]
    return list(prompt)  # type: ignore[arg-type]  # all texts, or all lists of ids


async def _prompt_ids(prompt: str | list[int], text: ModelText) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    if len(prompt) > LONG_TEXT:
        return await asyncio.to_thread(text.encode, prompt, add_special_tokens=True)
    return text.encode(prompt, add_special_tokens=True)


def check_ids(ids: Sequence[int], text: ModelText, *, param: str) -> None:
    """Raises: InvalidInput."""
    if not ids:
        raise InvalidInput(f"{'the prompt' if param == 'prompt' else param} is empty", param=param)
    if (largest := max(ids)) >= max(text.vocabulary_size, 1):
        raise InvalidInput(f"token {largest} is not in the model's vocabulary", param=param)


def _logit_bias(given: Mapping[str, float] | None, text: ModelText) -> dict[int, float]:
    biases = {}
    for key, bias in (given or {}).items():
        if not key.isdecimal() or int(key) >= text.vocabulary_size:
            raise InvalidInput(f"{key[:40]!r} is not a token id of this model", param="logit_bias")
        biases[int(key)] = bias
    return biases


def _sampling(request: GenerationFields, *, seed: int, bias: Mapping[int, float]) -> SamplingChoice:
    top_p = 1.0 if request.top_p is None else request.top_p
    return SamplingChoice(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=max(top_p, NARROWEST_TOP_P),
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        seed=seed,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
    )

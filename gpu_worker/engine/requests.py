"""One request inside the decode loop: its tokens, its cache, and where its events go."""

from __future__ import annotations

import time
from collections.abc import Callable

from firstlight.domain.errors import ContextTooLong, FirstlightError, InvalidInput
from gpu_worker.engine.interface import EngineRequest, Event
from gpu_worker.engine.kv_cache import KeyValueCache

# Called from the loop's thread.
Deliver = Callable[[Event | FirstlightError], None]

# Capacity reserved at once for tokens to come; more is grown into by doubling.
_RESERVED_NEW_TOKENS = 256


class ActiveRequest:
    """`tokens` are prompt, resumed and generated ones; the cache has been through the first of them."""

    def __init__(self, request: EngineRequest, deliver: Deliver) -> None:
        self.request = request
        self.deliver = deliver
        self.tokens = [*request.prompt_token_ids, *request.resumed_token_ids]
        self.generated = list(request.resumed_token_ids)
        self.is_cancelled = False
        self.is_first = True
        self.submitted_s = time.monotonic()
        self.admitted_s = 0.0
        reserve = min(request.max_tokens - len(self.generated), _RESERVED_NEW_TOKENS)
        self.cache = KeyValueCache(expected_tokens=len(self.tokens) + reserve)

    @property
    def cached_tokens(self) -> int:
        return self.cache.length

    @property
    def pending_tokens(self) -> int:
        return len(self.tokens) - self.cache.length

    @property
    def position(self) -> int:
        """Of the token to be generated next."""
        return len(self.generated)

    @property
    def is_full(self) -> bool:
        return self.position >= self.request.max_tokens

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.generated.append(token_id)
        self.is_first = False


def validate(request: EngineRequest, *, context_length: int, vocabulary_size: int) -> None:
    """Raises: InvalidInput, ContextTooLong."""
    prompt = len(request.prompt_token_ids)
    if prompt == 0:
        raise InvalidInput("the prompt has no tokens", request_id=request.request_id)
    if request.max_tokens <= 0:
        raise InvalidInput(f"max_tokens must be positive, not {request.max_tokens}")
    if prompt + request.max_tokens > context_length:
        raise ContextTooLong(
            f"{prompt} prompt and {request.max_tokens} new tokens exceed the context of {context_length}",
            prompt_tokens=prompt,
            max_tokens=request.max_tokens,
            context_length=context_length,
        )
    if len(request.resumed_token_ids) > request.max_tokens:
        raise InvalidInput("more tokens are resumed than the request may have in all")
    named = (*request.prompt_token_ids, *request.resumed_token_ids, *request.sampling.logit_bias)
    if any(not 0 <= token < vocabulary_size for token in named):
        raise InvalidInput(f"a token id is outside of the vocabulary of {vocabulary_size}")

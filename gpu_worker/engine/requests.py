"""One request inside the decode loop: its tokens, its cache, and where its events go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from firstlight.domain.errors import ContextTooLong, FirstlightError, InvalidInput
from gpu_worker.engine.constraint import Constraint
from gpu_worker.engine.interface import EngineRequest, Event
from gpu_worker.engine.kv_cache import KeyValueCache

# Called from the loop's thread.
Deliver = Callable[[Event | FirstlightError], None]

# Capacity reserved at once for tokens to come; more is grown into by doubling.
_RESERVED_NEW_TOKENS = 256


class ActiveRequest:
    """`tokens` are prompt, resumed and generated ones; the cache has been through the first of them.

    `cache` is one that was computed elsewhere, for tokens that this request begins with. `constraint` stands
    behind the resumed tokens.
    """

    takes_place = True

    def __init__(
        self,
        request: EngineRequest,
        deliver: Deliver,
        *,
        cache: KeyValueCache | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.deliver = deliver
        self.constraint = constraint
        self.tokens = [*request.prompt_token_ids, *request.resumed_token_ids]
        self.prompt_tokens = len(request.prompt_token_ids)
        self.generated = list(request.resumed_token_ids)
        self.is_cancelled = False
        self.is_first = True
        self.submitted_s = time.monotonic()
        self.admitted_s = 0.0
        # How long passes had stood still for weights when it was admitted.
        self.stood_still_s = 0.0
        self.is_ended = False
        # Set to have it taken out at its next token boundary; called once, from the loop's thread.
        self.on_held: Callable[[], None] | None = None
        reserve = min(request.max_tokens - len(self.generated), _RESERVED_NEW_TOKENS)
        self.cache = cache or KeyValueCache(expected_tokens=len(self.tokens) + reserve)
        # The last token must go through the model for the next one to come out.
        self.cache.truncate(len(self.tokens) - 1)

    @property
    def cached_tokens(self) -> int:
        return self.cache.length

    @property
    def pending_tokens(self) -> int:
        return len(self.tokens) - self.cache.length

    def parts(self, most_tokens: int) -> tuple[ActiveRequest, ...]:
        """What of it may be in one pass."""
        return (self,)

    @property
    def work(self) -> ActiveRequest:
        """What ends when this part fails."""
        return self

    @property
    def position(self) -> int:
        """Of the token to be generated next."""
        return len(self.generated)

    @property
    def is_full(self) -> bool:
        return self.position >= self.request.max_tokens

    @property
    def is_complete(self) -> bool:
        """Its grammar allows nothing more."""
        return self.constraint is not None and self.constraint.is_complete

    def append(self, token_id: int) -> None:
        if self.constraint is not None:
            self.constraint.accept([token_id])
        self.tokens.append(token_id)
        self.generated.append(token_id)
        self.is_first = False


class Rebuild:
    """A cache on its way to cover `tokens`, computed for a request that will come later. Chooses no token."""

    takes_place = False
    is_full = False
    is_complete = False

    def __init__(
        self,
        tokens: list[int],
        cache: KeyValueCache,
        on_end: Callable[[FirstlightError | None], None],
        *,
        prompt_tokens: int,
    ) -> None:
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self.cache = cache
        self.on_end = on_end
        self.is_cancelled = False
        self.is_ended = False

    @property
    def cached_tokens(self) -> int:
        return self.cache.length

    @property
    def pending_tokens(self) -> int:
        return len(self.tokens) - self.cache.length

    def parts(self, most_tokens: int) -> tuple[Rebuild, ...]:
        """What of it may be in one pass."""
        return (self,)

    @property
    def work(self) -> Rebuild:
        """What ends when this part fails."""
        return self

    def deliver(self, event: Event | FirstlightError) -> None:
        self.on_end(event if isinstance(event, FirstlightError) else None)


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
    require_known(named, vocabulary_size=vocabulary_size)


def require_known(token_ids: Iterable[int], *, vocabulary_size: int) -> None:
    """Raises: InvalidInput."""
    if any(not 0 <= token < vocabulary_size for token in token_ids):
        raise InvalidInput(f"a token id is outside of the vocabulary of {vocabulary_size}")

"""A request for vectors inside the decode loop: its inputs, in one place together, and where they go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

import torch

from firstlight.domain.embedding import Embedding
from firstlight.domain.errors import ContextTooLong, FirstlightError, InvalidInput
from gpu_worker.engine.attention import Span
from gpu_worker.engine.interface import Embedded, EmbeddingRequest
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.pooling import Pool
from gpu_worker.engine.requests import require_known

# Called from the loop's thread.
DeliverVector = Callable[[Embedded | FirstlightError], None]


class ActiveEmbedding:
    """Its inputs go through the model in their order, as many side by side as one pass has room for."""

    takes_place = True
    is_full = False
    is_complete = False

    def __init__(self, request: EmbeddingRequest, embedding: Embedding, deliver: DeliverVector) -> None:
        self.deliver = deliver
        self._left = deque(
            EmbeddingInput(self, index, tokens, embedding) for index, tokens in enumerate(request.inputs)
        )
        self.tokens = list(chain.from_iterable(request.inputs))
        self.is_cancelled = False
        self.is_ended = False
        self.is_first = True
        self.submitted_s = time.monotonic()
        self.admitted_s = 0.0
        # How long passes had stood still for weights when it was admitted.
        self.stood_still_s = 0.0

    @property
    def pending_tokens(self) -> int:
        """Of the input whose turn it is."""
        return self._left[0].pending_tokens if self._left else 0

    def parts(self, most_tokens: int) -> tuple[EmbeddingInput, ...]:
        """Inputs that may be in one pass: the first, and those behind it that fit beside it."""
        found: list[EmbeddingInput] = []
        room = most_tokens
        for part in self._left:
            if found and part.pending_tokens > room:
                break
            found.append(part)
            room -= part.pending_tokens
        return tuple(found)

    def event(self, part: EmbeddingInput, vector: bytes, *, stood_still_s: float) -> Embedded:
        """The vector of one input; with the first, what the request waited for.

        `stood_still_s`: how long passes have stood still for weights until now.
        """
        if not self.is_first:
            return Embedded(index=part.index, vector=vector)
        weights_s = stood_still_s - self.stood_still_s
        return Embedded(
            index=part.index,
            vector=vector,
            queue_s=self.admitted_s - self.submitted_s,
            prefill_s=time.monotonic() - self.admitted_s - weights_s,
            weights_s=weights_s,
        )

    def has_ended(self, part: EmbeddingInput) -> bool:
        """Its vector is known; whether it was the last."""
        self._left.remove(part)
        self.is_first = False
        return not self._left


class EmbeddingInput:
    """One input on its way: a prefill of which the states are kept, and no token comes out."""

    def __init__(
        self, work: ActiveEmbedding, index: int, tokens: tuple[int, ...], embedding: Embedding
    ) -> None:
        self.work = work
        self.index = index
        self.tokens = list(tokens)
        self.prompt_tokens = len(tokens)
        self.pool = Pool(embedding)
        self._cache: KeyValueCache | None = None

    @property
    def cache(self) -> KeyValueCache:
        # Made when it is its turn: a request may have thousands of inputs.
        if self._cache is None:
            self._cache = KeyValueCache(expected_tokens=len(self.tokens))
        return self._cache

    @property
    def cached_tokens(self) -> int:
        return 0 if self._cache is None else self._cache.length

    @property
    def pending_tokens(self) -> int:
        return len(self.tokens) - self.cached_tokens


def shares_of(pooled: Sequence[tuple[EmbeddingInput, Span]], states: torch.Tensor) -> torch.Tensor:
    """What each span adds to its input's vector, (spans, hidden), of the states (T, hidden) of one pass."""
    # Together, because each arrival from a GPU is waited for.
    return torch.stack(
        [part.pool.share(states[span.offset : span.offset + span.length]) for part, span in pooled]
    ).cpu()


def validate_embedding(request: EmbeddingRequest, *, context_length: int, vocabulary_size: int) -> None:
    """Raises: InvalidInput, ContextTooLong."""
    if not request.inputs or not all(request.inputs):
        raise InvalidInput("every input has at least one token, and there is at least one input")
    longest = max(len(tokens) for tokens in request.inputs)
    if longest > context_length:
        raise ContextTooLong(
            f"an input of {longest} tokens exceeds the context of {context_length}",
            prompt_tokens=longest,
            context_length=context_length,
        )
    require_known(chain.from_iterable(request.inputs), vocabulary_size=vocabulary_size)

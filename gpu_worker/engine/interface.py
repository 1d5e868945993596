"""What any engine offers, whatever runs inside: tokens in, a stream of tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from gpu_worker.engine.sampling import GREEDY, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One generation. `resumed_token_ids` were given to the client already: go on behind them.

    `max_tokens` counts new tokens in all, resumed ones included.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    resumed_token_ids: tuple[int, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    sampling: Sampling = GREEDY
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token. `position` counts generated tokens from 0, resumed ones included.

    Log-probabilities are the model's own, before penalties, bias and temperature. The times belong to the
    request: seconds waited for a slot, and from then until its first token.
    """

    position: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    queue_s: float = 0.0
    prefill_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a stream: an end token, which is not emitted, or as many tokens as were asked for."""

    reason: Literal["stop", "length"]


Event = Token | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an engine is now."""

    running: int
    waiting: int
    tokens_generated: int


class Engine(ABC):
    """Runs requests against one bound model."""

    max_concurrency: int
    context_length: int

    @abstractmethod
    def start(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """Run one request; closing the stream cancels it and frees its slot at the next token.

        Raises: InvalidInput, ContextTooLong, QueueFull, EngineError; the first three before any token.
        """

    @abstractmethod
    def load(self) -> Load: ...

    @abstractmethod
    def close(self) -> None:
        """End every stream with EngineGone and stop. Blocks until the step under way is done."""

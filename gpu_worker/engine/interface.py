"""What any engine offers, whatever runs inside: tokens in, a stream of tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Literal

from firstlight.domain.migration import PRIOR_LINK, Link, Transfer
from firstlight.rpc.engine_pb2 import SessionPart
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
    # A session that a migration brought here, whose cache to go on with.
    session_id: str = ""
    # What may be generated; empty: anything.
    grammar: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token. `position` counts generated tokens from 0, resumed ones included.

    Log-probabilities are the model's own, before penalties, bias and temperature. The times belong to the
    request: seconds waited for a slot, for weights that were still loading, and else until its first token.
    """

    position: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    queue_s: float = 0.0
    prefill_s: float = 0.0
    weights_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a stream: an end token, which is not emitted, or as many tokens as were asked for."""

    reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The engine that requests move to."""

    instance_id: str
    endpoint: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The end of a stream here: it goes on at `destination` with the token at `position`.

    `session_id` is empty when nothing was brought there, and the request starts over behind its tokens.
    """

    destination: Destination
    session_id: str
    position: int


Event = Token | Finished | Moved


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Vectors that are asked for together: they take one place."""

    request_id: str
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The vector of one input, float32, little-endian. Times belong to the request, as a Token's."""

    index: int
    vector: bytes
    queue_s: float = 0.0
    prefill_s: float = 0.0
    weights_s: float = 0.0


DELTA_TOKENS = 16
MAX_ROUNDS = 8
HELD_AT_MOST_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOrder:
    """Move every request of an engine. `delta_tokens`: hand over once no more than that is left to send."""

    migration_id: str
    destination: Destination
    transfer: Transfer = Transfer.EXACT
    delta_tokens: int = DELTA_TOKENS
    max_rounds: int = MAX_ROUNDS
    # A request that stands still for longer goes on here: its client waits.
    held_at_most_s: float = HELD_AT_MOST_S
    # By which FAST chooses.
    link: Link = PRIOR_LINK


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveEvent:
    """What became of one request, or one round of it.

    A hand-over tells all tokens of the request and the seconds since its first round began; `held_s` of them
    it stood still at the source.
    """

    kind: Literal["round", "handed_over", "moved_waiting", "ended", "failed"]
    request_id: str
    round: int = 0
    tokens: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0
    held_s: float = 0.0
    error: str = ""
    left: int = 0
    transfer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an engine is now."""

    running: int
    waiting: int
    tokens_generated: int
    # On their way here, and not yet attached.
    sessions: int = 0
    # Prompt and generated ones of the requests that run or wait.
    request_tokens: int = 0


class Receiver(ABC):
    """The engine that requests move to, as their source sees it."""

    @abstractmethod
    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        """One round; tokens that its cache covers then. Raises: FirstlightError."""

    @abstractmethod
    async def drop(self, session_id: str) -> None:
        """Best effort."""


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
    def embed(self, request: EmbeddingRequest) -> AsyncGenerator[Embedded, None]:
        """The vector of every input, each once; closing the stream cancels the rest.

        Raises: InvalidInput, ContextTooLong, QueueFull, EngineError; the first three before any vector.
        """

    @abstractmethod
    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        """Take in one round of a request that moves here; how many of its tokens are in its cache then.

        Raises: InvalidInput, EngineBusy, EngineError.
        """

    @abstractmethod
    def drop(self, session_id: str) -> bool:
        """Forget a session; whether there was one."""

    @abstractmethod
    def move_out(self, order: MoveOrder, receiver: Receiver) -> AsyncGenerator[MoveEvent, None]:
        """Move every request to another engine while it goes on; events until none is left.

        Closing it early lets those go on here that have not been handed over.
        """

    @abstractmethod
    def load(self) -> Load: ...

    @abstractmethod
    def close(self) -> None:
        """End every stream with EngineGone and stop. Blocks until the step under way is done."""

"""What a request has asked for and been given, in tokens: enough to go on with it on any instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from firstlight.rpc import engine_pb2


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """How tokens are chosen; the values are those of engine.proto."""

    temperature: float = 1.0
    top_p: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Journal:
    """One choice of one request. `emitted` grows with the stream and is what a resume replays."""

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingChoice
    max_tokens: int
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    # What may be generated, as engine.proto has it; empty: anything.
    grammar: str = ""
    emitted: list[int] = field(default_factory=list)
    resumes: int = 0
    # Where a migration took it, until it has been asked for there; and how often it has moved.
    moved_to: engine_pb2.Migrated | None = None
    moves: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def given(self) -> int:
        """Tokens that have come."""
        return len(self.emitted)

    def to_request(self, *, epoch: int) -> engine_pb2.GenerateRequest:
        """The call that begins, or goes on behind what was emitted, on an instance of this epoch."""
        chosen = self.sampling
        return engine_pb2.GenerateRequest(
            request_id=self.request_id,
            session_id="" if self.moved_to is None else self.moved_to.session_id,
            epoch=epoch,
            prompt_token_ids=self.prompt_token_ids,
            resumed_token_ids=self.emitted,
            max_tokens=self.max_tokens,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            grammar=self.grammar,
            sampling=engine_pb2.Sampling(
                temperature=chosen.temperature,
                top_p=chosen.top_p,
                top_k=chosen.top_k,
                min_p=chosen.min_p,
                seed=chosen.seed,
                repetition_penalty=chosen.repetition_penalty,
                presence_penalty=chosen.presence_penalty,
                frequency_penalty=chosen.frequency_penalty,
                logit_bias=chosen.logit_bias,
            ),
        )

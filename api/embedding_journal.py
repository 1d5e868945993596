"""What a request for vectors has asked for and been given: enough to ask another instance for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from firstlight.rpc import engine_pb2


@dataclass(slots=True, eq=False)
class EmbeddingJournal:
    """All inputs of one request. `vectors` by input: float32, little-endian, as the engine gave them."""

    # Nothing of it is generated, and nothing of it moves: it is asked for again.
    max_tokens: ClassVar[int] = 0
    moves: ClassVar[int] = 0

    request_id: str
    inputs: Sequence[Sequence[int]]
    vectors: dict[int, bytes] = field(default_factory=dict)
    resumes: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(len(token_ids) for token_ids in self.inputs)

    @property
    def given(self) -> int:
        """Vectors that have come."""
        return len(self.vectors)

    @property
    def missing(self) -> list[int]:
        """Inputs without a vector, in their order."""
        return [index for index in range(len(self.inputs)) if index not in self.vectors]

    def to_request(self, asked: Sequence[int], *, epoch: int) -> engine_pb2.EmbedRequest:
        """For these inputs, of an instance of this epoch; the answer counts them from 0."""
        return engine_pb2.EmbedRequest(
            request_id=self.request_id,
            epoch=epoch,
            inputs=[engine_pb2.TokenSequence(token_ids=self.inputs[index]) for index in asked],
        )

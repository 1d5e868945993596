"""From the hidden states of a text, as they come span by span, to its vector."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from firstlight.domain.embedding import Embedding, Pooling


class Pool:
    """One text's. Spans come in the order of its tokens; everything is float32 on the CPU.

    What a span adds depends on that span alone, and it is added in their order: the same text cut in the same
    places gives the same bits, whoever its neighbours are and however many spans a pass brings.
    """

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding
        self._pooled: torch.Tensor | None = None
        self._tokens = 0

    def share(self, states: torch.Tensor) -> torch.Tensor:
        """What counts of a span's states (tokens, hidden): (hidden,), on their device."""
        if self._embedding.pooling is Pooling.MEAN:
            return states.float().sum(0)
        return states[-1 if self._embedding.pooling is Pooling.LAST else 0].float()

    def add(self, share: torch.Tensor, *, tokens: int) -> None:
        """A span of so many tokens has been through the model."""
        self._tokens += tokens
        if self._pooled is None or self._embedding.pooling is Pooling.LAST:
            self._pooled = share
        elif self._embedding.pooling is Pooling.MEAN:
            self._pooled = self._pooled + share

    def vector(self) -> bytes:
        """Of all that came, float32. Raises: ValueError when the states were no numbers."""
        assert self._pooled is not None, "a text has tokens"
        pooled = self._pooled
        if self._embedding.pooling is Pooling.MEAN:
            pooled = pooled / self._tokens
        if not bool(pooled.isfinite().all()):
            raise ValueError("the model's states are not numbers")
        if self._embedding.normalizes:
            pooled = normalize(pooled, dim=0)
        return pooled.numpy().astype("<f4").tobytes()

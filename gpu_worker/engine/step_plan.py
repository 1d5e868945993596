"""What one forward pass holds: who decodes, who prefills, and how much. Pure policy, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """A running request, as far as the plan cares."""

    @property
    def cached_tokens(self) -> int: ...

    @property
    def pending_tokens(self) -> int: ...


def plan_step(running: Sequence[Progress], *, chunk_tokens: int) -> list[tuple[int, int]]:
    """(index into `running`, tokens) for the next pass. Everyone with one pending token decodes it.

    Prefills share one chunk's worth of tokens a pass, oldest first, so that a long prompt delays running
    streams by at most one chunk a token. A prompt is always cut at multiples of `chunk_tokens`, whoever its
    neighbours are: where it is cut can show in its last bits.
    """
    plan = []
    budget = chunk_tokens
    for index, request in enumerate(running):
        if request.pending_tokens == 1:
            plan.append((index, 1))
            continue
        tokens = min(request.pending_tokens, chunk_tokens - request.cached_tokens % chunk_tokens)
        if tokens <= budget:
            plan.append((index, tokens))
            budget -= tokens
        else:
            budget = 0
    return plan

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


# Where a chunk costs a few steps' time and smaller ones would waste the device. On one CPU core a chunk of
# 128 tokens of a 135M model takes 0.36 s, and per token 3% more than one of 256.
_CPU_CHUNK, _GPU_CHUNK = 128, 1024


# So many chunks of prompts share a pass that has to wait for weights: each layer then meets all of them
# while the next one still comes, and the load hides their compute.
CHUNKS_WHILE_LOADING = 16


def cut(cached_tokens: int, tokens: int, *, chunk_tokens: int, prompt_tokens: int | None = None) -> list[int]:
    """`tokens` of a request from `cached_tokens` on, cut where passes of one chunk would cut them.

    With `prompt_tokens`, those behind the prompt one by one: that is how they were decoded at first, and
    attention over one token rounds differently from attention over many.
    """
    lengths = []
    while tokens:
        if prompt_tokens is None or cached_tokens < prompt_tokens:
            most = chunk_tokens - cached_tokens % chunk_tokens
            length = min(tokens, most, tokens if prompt_tokens is None else prompt_tokens - cached_tokens)
        else:
            length = 1
        lengths.append(length)
        cached_tokens, tokens = cached_tokens + length, tokens - length
    return lengths


def chunk_tokens_for(device: str) -> int:
    return _CPU_CHUNK if device == "cpu" else _GPU_CHUNK


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

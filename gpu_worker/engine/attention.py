"""Attention over a ragged batch: tokens of many requests side by side, each seeing only its own past.

Registered with transformers' attention interface under `NAME`; no mask function is registered, so models
build no mask. Layout of one forward pass, T tokens in all:

    query (1, heads, T, head_dim)    | span 0: prefill of 5 | span 1: decode, 1 | span 2: decode, 1 |
                                              |                      |                   |
    KeyValueCache                          request a              request b           request c
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from gpu_worker.engine.kv_cache import KeyValueCache

NAME = "firstlight"


class Span:
    """`length` consecutive tokens of one request, from `offset` of the flat batch on.

    `ahead` tokens of it stand before them in the same pass, in spans of their own.
    """

    def __init__(self, *, cache: KeyValueCache, offset: int, length: int, ahead: int = 0) -> None:
        self.cache = cache
        self.ahead = ahead
        self.offset = offset
        self.length = length
        self._masks: dict[int | None, torch.Tensor] = {}

    @property
    def past(self) -> int:
        return self.cache.length + self.ahead

    def visible(self, window: int | None, device: torch.device) -> torch.Tensor:
        """(length, past + length) booleans, true where a query may look; the same in every layer."""
        if (mask := self._masks.get(window)) is None:
            keys = torch.arange(self.past + self.length, device=device)
            queries = keys[self.past :, None]
            mask = keys <= queries
            if window is not None:
                mask &= keys > queries - window
            self._masks[window] = mask
        return mask


# A context rather than an argument: not every model hands unknown arguments down to its attention.
_spans: ContextVar[Sequence[Span]] = ContextVar("spans")


@contextmanager
def attending(spans: Sequence[Span]) -> Iterator[None]:
    """Forward passes inside run over `spans`; afterwards each cache counts its new tokens."""
    token = _spans.set(spans)
    try:
        yield
    finally:
        _spans.reset(token)
    for span in spans:
        span.cache.advance(span.length)


# Any: models hand down arguments of their own that attention without a mask has no use for.
def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head_dim)
    key: torch.Tensor,  # (1, key_value_heads, T, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """Append every span's keys and values to its cache and attend. Returns (1, T, heads, head_dim)."""
    assert attention_mask is None, "a model built a mask of its own"
    layer = module.layer_idx
    assert isinstance(layer, int)
    parts = []
    for span in _spans.get():
        ours = slice(span.offset, span.offset + span.length)
        keys, values = span.cache.write(layer, key[:, :, ours], value[:, :, ours], start=span.past)
        parts.append(_attend(span, query[:, :, ours], keys, values, scaling, sliding_window, softcap))
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return joined.transpose(1, 2).contiguous(), None


def _attend(
    span: Span,
    query: torch.Tensor,  # (1, heads, length, head_dim)
    keys: torch.Tensor,  # (1, key_value_heads, past + length, head_dim)
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    if window is not None and keys.shape[2] <= window:
        window = None
    if softcap is not None:
        return _capped(query, keys, values, scaling, softcap, span.visible(window, query.device))
    if span.length == 1:
        return _attend_one(query, keys, values, scaling, window)
    is_whole = window is None and span.past == 0
    mask = None if is_whole else span.visible(window, query.device)
    groups = query.shape[1] // keys.shape[1]
    if groups > 1 and mask is not None:
        # With a mask, grouped heads would fall back to the slowest kernel on CUDA.
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
        groups = 1
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=is_whole, scale=scaling, enable_gqa=groups > 1
    )


def _attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    if window is not None:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    # One token: the heads of a group are rows of one small matrix product.
    grouped = query.reshape(1, keys.shape[1], -1, query.shape[3])
    return scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(query.shape)


def _capped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    softcap: float,
    visible: torch.Tensor,
) -> torch.Tensor:
    groups = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = query @ keys.transpose(2, 3) * (scaling if scaling is not None else query.shape[3] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ values


def register() -> None:
    """Make the attention known to transformers. Repeats are fine."""
    AttentionInterface.register(NAME, ragged_attention)

"""First use is slow: modules are imported lazily, kernels chosen once. Do it before it matters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoConfig

from gpu_worker.engine.attention import Span, attending
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.skeleton import assemble

# Small enough to cost nothing, and with every dimension that architectures name in their own way.
_TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "word_embed_proj_dim": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def warm(model_types: Iterable[str], *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """One tiny model of each architecture through a prefill, a decode and a mixed pass."""
    for model_type in model_types:
        described = AutoConfig.for_model(model_type, **_TINY)
        with torch.device(device):
            model = assemble(described, dtype=dtype)
        first, second = KeyValueCache(), KeyValueCache()
        _forward(model, [(first, 5)], device)
        _forward(model, [(first, 1)], device)
        _forward(model, [(first, 1), (second, 3)], device)


# Any: transformers' models are untyped.
def _forward(model: Any, parts: list[tuple[KeyValueCache, int]], device: str) -> None:
    spans: list[Span] = []
    positions: list[int] = []
    for cache, length in parts:
        spans.append(Span(cache=cache, offset=len(positions), length=length))
        positions += range(cache.length, cache.length + length)
    with torch.inference_mode(), attending(spans):
        model(
            input_ids=torch.zeros((1, len(positions)), dtype=torch.int64, device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor([len(positions) - 1], device=device),
        )

"""Random models of a few thousand parameters, one for each architecture the engine promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_SHAPE: dict[str, Any] = {**SHAPE, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 128}
EXPERTS: dict[str, Any] = {**SHAPE, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "llama tied": {**SHAPE, "tie_word_embeddings": True},
    "llama rope scaled": {
        **SHAPE,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {**SHAPE, "sliding_window": 7},
    "qwen2": SHAPE,
    "qwen3": SHAPE,
    "gemma": SHAPE,
    "gemma2": {**SHAPE, "sliding_window": 7, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**SHAPE, "sliding_window": 7, "num_hidden_layers": 7, "query_pre_attn_scalar": 8},
    "phi": {**SHAPE, "num_key_value_heads": 6},
    "phi3": SHAPE,
    "gpt_neox": {**SHAPE, "num_key_value_heads": 6},
    "gpt2": GPT_SHAPE,
    "opt": {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 48},
    "mixtral": {**EXPERTS, "sliding_window": None},
    "qwen3_moe": EXPERTS,
    "olmo2": SHAPE,
    "smollm3": SHAPE,
    "starcoder2": SHAPE,
    "granite": SHAPE,
}


def write_tiny_model(directory: Path, name: str, *, has_head: bool = True, **changes: Any) -> Path:
    """Save the named random model in a Hugging Face layout. `changes` are made to its configuration."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(name.split()[0], **{**CONFIGS[name], **changes})
    kind = AutoModelForCausalLM if has_head else AutoModel
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


def add_pooling(directory: Path, mode: str, *, normalizes: bool, size: int = 48) -> Path:
    """Say beside a model, as sentence-transformers does, how it embeds. `mode` is lasttoken, mean_tokens …"""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {"word_embedding_dimension": size} | {f"pooling_mode_{one}": one == mode for one in modes}
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory

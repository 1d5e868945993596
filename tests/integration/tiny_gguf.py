"""Random GGUF files of a few hundred thousand elements, their matrices in every packed type by turns."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import gguf
import numpy as np

from gpu_worker.convert.packed_types import PACKED

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, WORDS = 256, 512, 4, 2, 2, 300
HEAD = HIDDEN // HEADS
# Norms apart, and by the names of GGUF.
_MATRICES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV_HEADS * HEAD, HIDDEN),
    "attn_v": (KV_HEADS * HEAD, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}
# The inner size is that which transformers takes for a file of this kind, whatever the file says.
EXPERTS, EXPERT_INNER = 3, 768
_SPARSE = {
    "ffn_gate_inp": (EXPERTS, HIDDEN),
    "ffn_gate_exps": (EXPERTS, EXPERT_INNER, HIDDEN),
    "ffn_up_exps": (EXPERTS, EXPERT_INNER, HIDDEN),
    "ffn_down_exps": (EXPERTS, HIDDEN, EXPERT_INNER),
}
_NORMS = {
    "llama": ("attn_norm", "ffn_norm"),
    "qwen2": ("attn_norm", "ffn_norm"),
    "gemma2": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    "qwen3moe": ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"),
}
ARCHITECTURES = tuple(_NORMS)


def write_tiny_gguf(path: Path, architecture: str, *, seed: int = 5, words: int = WORDS) -> Path:
    """A model of `LAYERS` layers, without a tokenizer."""
    random = np.random.default_rng(seed)
    kinds = cycle([*PACKED, "F16", "BF16"])
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(architecture)
    writer.add_context_length(128)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(words)
    is_sparse = architecture == "qwen3moe"
    if is_sparse:
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(EXPERT_INNER)
    writer.add_token_list([f"word-{index}" for index in range(words)])
    _add(writer, random, "token_embd.weight", (words, HIDDEN), next(kinds))
    _add(writer, random, "output_norm.weight", (HIDDEN,), "F32")
    if architecture != "gemma2":
        _add(writer, random, "output.weight", (words, HIDDEN), next(kinds))
    for layer in range(LAYERS):
        for name, shape in _matrices(is_sparse=is_sparse).items():
            _add(writer, random, f"blk.{layer}.{name}.weight", shape, next(kinds))
        for name in _NORMS[architecture]:
            size = HEAD if name in ("attn_q_norm", "attn_k_norm") else HIDDEN
            _add(writer, random, f"blk.{layer}.{name}.weight", (size,), "F32")
        for name in ("attn_q", "attn_k", "attn_v") if architecture == "qwen2" else ():
            _add(writer, random, f"blk.{layer}.{name}.bias", _MATRICES[name][:1], "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _matrices(*, is_sparse: bool) -> dict[str, tuple[int, ...]]:
    if not is_sparse:
        return _MATRICES
    return {name: shape for name, shape in _MATRICES.items() if name.startswith("attn")} | _SPARSE


def _add(
    writer: gguf.GGUFWriter, random: np.random.Generator, name: str, shape: tuple[int, ...], kind: str
) -> None:
    if kind == "F32":
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
        return
    each = PACKED[kind].size_bytes / PACKED[kind].elements if kind in PACKED else 2
    # Without the bits that make a scale infinite or no number: what NaN becomes is nobody's business.
    blocks = random.integers(0, 256, (*shape[:-1], int(shape[-1] * each)), dtype=np.uint8) & 0x77
    writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])

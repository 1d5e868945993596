"""A realistic checkpoint to measure with: Llama's shapes, random bf16, small tensors among the large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

VOCABULARY = 32_000
# (hidden, intermediate, heads, key-value heads): the largest that still has enough layers is taken.
SHAPES = ((4096, 11008, 32, 8), (2048, 5632, 32, 4), (1024, 2816, 16, 4), (512, 1408, 8, 2), (256, 704, 4, 2))
LEAST_LAYERS = 12
BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama; `vocabulary` counts both the embedding's rows and the head's."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    layers: int

    @property
    def embedding_bytes(self) -> int:
        return 2 * self.vocabulary * self.hidden * BF16_BYTES

    @property
    def layer_bytes(self) -> int:
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.key_value_heads)
        return (attention + 3 * self.hidden * self.intermediate) * BF16_BYTES


def shape_for(size_bytes: int) -> ModelShape:
    """The Llama whose weights come nearest to `size_bytes`."""
    for vocabulary in (VOCABULARY, 2_000):
        for hidden, intermediate, heads, key_value_heads in SHAPES:
            bare = ModelShape(hidden, intermediate, heads, key_value_heads, vocabulary, 0)
            layers = round((size_bytes - bare.embedding_bytes) / bare.layer_bytes)
            if layers >= LEAST_LAYERS:
                return ModelShape(hidden, intermediate, heads, key_value_heads, vocabulary, layers)
    return ModelShape(*SHAPES[-1], 2_000, LEAST_LAYERS)


# Any: transformers' configurations and models are untyped.
def llama_config(shape: ModelShape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        num_hidden_layers=shape.layers,
        vocab_size=shape.vocabulary,
        # Biases are the smallest tensors a real model has: thousands of bytes between the megabytes.
        attention_bias=True,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


# Any: see llama_config.
def random_model(shape: ModelShape, *, seed: int) -> Any:
    """The model with every weight drawn anew, norms included: no two tensors alike, nothing compressible."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(shape)).to(torch.bfloat16)
    source = torch.Generator().manual_seed(seed)
    state = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=source)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model

"""Which model architectures the engine runs exactly, decided from config.json alone.

A model is here when its attention goes through transformers' attention interface with everything it needs as
arguments, and a test compares its logits with `from_pretrained`. All else is refused when it is converted,
not when a user waits for its first token. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstlight.domain.errors import SourceUnsupported

# model_type -> the transformers modelling module that holds it.
MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi": "phi",
    "phi3": "phi3",
    "gpt_neox": "gpt_neox",
    "gpt2": "gpt2",
    "opt": "opt",
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3_moe",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
    "granite": "granite",
}

# Their rotary factors depend on the longest sequence of a batch: a request would change with its neighbours.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


# Any: the values of a JSON object.
def require_supported(config: Mapping[str, Any]) -> str:
    """The model_type of a config.json that the engine can run. Raises: SourceUnsupported."""
    if config.get("auto_map"):
        raise SourceUnsupported("this model brings its own Python code (auto_map); remote code is never run")
    model_type = str(config.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise SourceUnsupported(
            f"architecture {model_type!r} is not supported; supported: {', '.join(sorted(MODEL_TYPES))}"
        )
    if config.get("quantization_config"):
        raise SourceUnsupported(
            "weights quantized in the source are not supported; use the unquantized model"
        )
    if config.get("is_encoder_decoder") or config.get("use_bidirectional_attention"):
        raise SourceUnsupported(f"this {model_type} config does not describe a causal decoder")
    if (rope := _rope_types(config)) & _BATCH_DEPENDENT_ROPE:
        raise SourceUnsupported(f"rotary scaling {', '.join(sorted(rope))} is not supported")
    return model_type


def _rope_types(config: Mapping[str, Any]) -> set[str]:
    found = set()
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key)
        if isinstance(settings, Mapping):
            nested = [value for value in settings.values() if isinstance(value, Mapping)]
            found |= {str(each.get("rope_type", each.get("type"))) for each in (settings, *nested)}
    return found


def context_length(config: Mapping[str, Any]) -> int:
    """Positions the model was made for; 2,048 when its config does not say."""
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(value := config.get(key), int) and value > 0:
            return value
    return 2048

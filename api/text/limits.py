"""How long a context the checkpoint was made for."""

from __future__ import annotations

from collections.abc import Mapping

_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")


def context_length_of(config: Mapping[str, object]) -> int | None:
    """Positions the model's config.json allows, or None where it does not say (ALiBi, recurrent)."""
    inner = config.get("text_config")
    for level in (inner if isinstance(inner, dict) else {}, config):
        for key in _KEYS:
            value = level.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None

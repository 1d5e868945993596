"""The order in which a forward pass meets a model's tensors, told from their names.

Embedding, layers by number, final norm, head: compute can then follow the bytes of a running load. A name
outside of the known patterns costs overlap, never correctness.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)(?:\.|$)")
_ANY_NUMBER = re.compile(r"\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|wte|wpe|word_embeddings")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|score|classifier|output_projection)(?:\.|$)")
_BEFORE, _LAYERS, _AFTER, _LAST = range(4)


def _key(name: str) -> tuple[int, int]:
    layer = _LAYER.search(name) or _ANY_NUMBER.search(name)
    if layer:
        return _LAYERS, int(layer.group(1))
    if _HEAD.search(name):
        return _LAST, 0
    return (_BEFORE if _EMBEDDING.search(name) else _AFTER), 0


def execution_order(names: Iterable[str]) -> list[str]:
    """Stable: names of one layer keep the order they came in."""
    return sorted(names, key=_key)

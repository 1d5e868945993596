"""How a model's last hidden states become one vector: kept beside its weights as `embedding.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from firstlight.domain.errors import SourceCorrupt

EMBEDDING_FILE = "embedding.json"


class Pooling(StrEnum):
    """Which hidden states of a text count: of its last token, the mean of all, of its first token."""

    LAST = "lasttoken"
    MEAN = "mean"
    FIRST = "cls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """`size` is that of a vector. `generates`: the model has a head too, and can write text."""

    pooling: Pooling
    normalizes: bool
    size: int
    generates: bool


def embedding_json(embedding: Embedding) -> bytes:
    """What stands in the file."""
    return json.dumps(asdict(embedding), indent=2, sort_keys=True).encode() + b"\n"


def parse_embedding(text: bytes) -> Embedding:
    """Raises: SourceCorrupt for anything that `embedding_json` would not write."""
    try:
        found = json.loads(text)
        embedding = Embedding(
            pooling=Pooling(found["pooling"]),
            normalizes=found["normalizes"],
            size=found["size"],
            generates=found["generates"],
        )
    except (ValueError, KeyError, TypeError) as failure:
        raise SourceCorrupt(f"{EMBEDDING_FILE} cannot be read: {failure!r}") from failure
    is_sound = type(embedding.size) is int and embedding.size > 0
    if not is_sound or {type(embedding.normalizes), type(embedding.generates)} != {bool}:
        raise SourceCorrupt(f"{EMBEDDING_FILE} does not describe an embedding")
    return embedding

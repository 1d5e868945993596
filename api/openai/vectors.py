"""Vectors as OpenAI's clients read them: figures, or the bytes of float32 in base64."""

from __future__ import annotations

import json
import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence


def embeddings_json(
    vectors: Sequence[bytes], *, dimensions: int | None, in_base64: bool, model: str, prompt_tokens: int
) -> bytes:
    """The whole answer. `vectors` are float32, little-endian, of one size that is at least `dimensions`."""
    shortened = vectors if dimensions is None else [shorten(vector, dimensions) for vector in vectors]
    return json.dumps(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": b64encode(vector).decode() if in_base64 else figures(vector).tolist(),
                }
                for index, vector in enumerate(shortened)
            ],
            "model": model,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
        }
    ).encode()


def shorten(vector: bytes, dimensions: int) -> bytes:
    """Its first figures, brought to length 1: how models trained for it mean their shorter vectors."""
    kept = figures(vector)[:dimensions]
    length = math.sqrt(math.fsum(figure * figure for figure in kept))
    return _bytes(array("f", (figure / length for figure in kept)) if length else kept)


def figures(vector: bytes) -> array[float]:
    found = array("f", vector)
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _bytes(vector: array[float]) -> bytes:
    if sys.byteorder == "big":
        vector.byteswap()
    return vector.tobytes()

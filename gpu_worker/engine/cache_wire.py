"""Keys and values as bytes between two engines, and back. Raw values: nothing is rounded on the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from firstlight.domain.errors import InvalidInput
from firstlight.rpc.engine_pb2 import CachePart
from gpu_worker.engine.kv_cache import KeyValueCache

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Far below gRPC's limit, and small enough to interleave with tokens of running streams.
MESSAGE_BYTES = 2 * 2**20


def messages_of(cache: KeyValueCache, start: int, end: int) -> Iterator[list[CachePart]]:
    """Tokens [start, end) of every layer, layer by layer: what each of a few messages holds.

    At most about MESSAGE_BYTES each: a message for every layer of a short request would cost more than
    its bytes.
    """
    message: list[CachePart] = []
    held_bytes = 0
    for part in _parts_of(cache, start, end):
        part_bytes = len(part.keys) + len(part.values)
        if message and held_bytes + part_bytes > MESSAGE_BYTES:
            yield message
            message, held_bytes = [], 0
        message.append(part)
        held_bytes += part_bytes
    if message:
        yield message


def _parts_of(cache: KeyValueCache, start: int, end: int) -> Iterator[CachePart]:
    for layer in cache.layers:
        keys, values = cache.read(layer, start, end)
        step = max(1, MESSAGE_BYTES // max(1, keys[:, :1].nbytes + values[:, :1].nbytes))
        for first in range(0, end - start, step):
            some = slice(first, min(first + step, end - start))
            yield _part(layer, start + first, keys[:, some], values[:, some])


def size_bytes(cache: KeyValueCache) -> int:
    """Of the tokens that it holds now."""
    total = 0
    for layer in cache.layers:
        keys, values = cache.read(layer, 0, cache.length)
        total += keys.nbytes + values.nbytes
    return total


def _part(layer: int, from_token: int, keys: torch.Tensor, values: torch.Tensor) -> CachePart:
    heads, tokens, key_dim = keys.shape
    return CachePart(
        layer=layer,
        from_token=from_token,
        tokens=tokens,
        heads=heads,
        key_dim=key_dim,
        value_dim=values.shape[2],
        dtype=_NAMES[keys.dtype],
        keys=_bytes(keys),
        values=_bytes(values),
    )


def fill(cache: KeyValueCache, part: CachePart, *, device: str) -> None:
    """Put a part in its place. Raises: InvalidInput when its bytes are not what it says they are."""
    dtype = _DTYPES.get(part.dtype)
    if (
        dtype is None
        or min(part.tokens, part.heads, part.key_dim, part.value_dim) <= 0
        or part.from_token < 0
    ):
        raise InvalidInput(f"a part of a cache makes no sense: dtype {part.dtype!r}, {part.tokens} tokens")
    keys = _tensor(part.keys, (part.heads, part.tokens, part.key_dim), dtype)
    values = _tensor(part.values, (part.heads, part.tokens, part.value_dim), dtype)
    cache.fill(part.layer, part.from_token, keys.to(device), values.to(device))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    size_bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
    if len(data) != size_bytes:
        raise InvalidInput(f"a part of a cache holds {len(data)} bytes where {size_bytes} were announced")
    # A bytearray, because torch warns of memory it could not write to.
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)

"""One request's keys and values: per layer one contiguous block that doubles as it fills."""

from __future__ import annotations

import torch

_SMALLEST_CAPACITY = 64


class KeyValueCache:
    """Keys and values of the `length` tokens a request has been through.

    A forward pass writes the new span into every layer first and counts it once at the end (`advance`), so a
    pass that fails half way leaves the cache as it was.
    """

    def __init__(self, *, expected_tokens: int = 0) -> None:
        self.length = 0
        self._expected_tokens = expected_tokens
        self._keys: dict[int, torch.Tensor] = {}  # layer -> (1, key_value_heads, capacity, head_dim)
        self._values: dict[int, torch.Tensor] = {}

    def write(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, *, start: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a span (1, key_value_heads, tokens, head_dim) at `start`; views of all up to its end.

        `start` is `length` unless told: behind what this pass has put there before.
        """
        start = self.length if start is None else start
        end = start + key.shape[2]
        return _put(self._keys, layer, key, start, self._room(end)), _put(
            self._values, layer, value, start, self._room(end)
        )

    def advance(self, tokens: int) -> None:
        self.length += tokens

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self._keys))

    def read(self, layer: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens [start, end) as (key_value_heads, tokens, head_dim) views.

        Fine from any thread for end <= `length`: what was counted is never written again, and a block that
        was outgrown meanwhile still holds it.
        """
        return self._keys[layer][0, :, start:end], self._values[layer][0, :, start:end]

    def fill(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put (key_value_heads, tokens, head_dim) computed elsewhere at `start`; not yet counted."""
        end = start + keys.shape[1]
        _put(self._keys, layer, keys[None], start, self._room(end))
        _put(self._values, layer, values[None], start, self._room(end))

    def truncate(self, tokens: int) -> None:
        """Count at most the first `tokens`; the rest will be computed again."""
        self.length = min(self.length, tokens)

    @property
    def size_bytes(self) -> int:
        return sum(block.nbytes for blocks in (self._keys, self._values) for block in blocks.values())

    def _room(self, end: int) -> int:
        room = max(_SMALLEST_CAPACITY, self._expected_tokens)
        while room < end:
            room *= 2
        return room


def _put(
    blocks: dict[int, torch.Tensor], layer: int, span: torch.Tensor, start: int, room: int
) -> torch.Tensor:
    block = blocks.get(layer)
    end = start + span.shape[2]
    if block is None or block.shape[2] < end:
        grown = span.new_empty((1, span.shape[1], room, span.shape[3]))
        if block is not None:
            grown[:, :, :start] = block[:, :, :start]
        block = blocks[layer] = grown
    block[:, :, start:end] = span
    return block[:, :, :end]

"""Which resident thing goes first when room is needed: cost-aware least-recently-used.

Greedy-dual by size: an entry's credit is the credit of the last one evicted plus what a byte of it costs
to bring back. What is cheap and long unused goes first; what is dear stays longer, but not for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class _Credit:
    value: float
    used: int  # breaks ties by least recent use


class EvictionOrder:
    """Keys by how soon they should go. Knows nothing of pins: the caller names who may go."""

    def __init__(self) -> None:
        self._credits: dict[str, _Credit] = {}
        self._floor = 0.0
        self._uses = count()

    def touch(self, key: str, *, cost_s: float, size_bytes: int) -> None:
        """Note a use now. `cost_s` is the time it would take to bring `size_bytes` back."""
        # Seconds a GiB: the scale only has to be one for all keys.
        self._credits[key] = _Credit(
            self._floor + cost_s * 2**30 / max(size_bytes, 1),
            next(self._uses),
        )

    def evicted(self, key: str) -> None:
        """Forget a key that went to make room; the others age by its credit."""
        self._floor = max(self._floor, self._credits.pop(key).value)

    def forget(self, key: str) -> None:
        """Forget a key that went for another reason."""
        self._credits.pop(key, None)

    def first_to_go(self, candidates: set[str]) -> list[str]:
        """`candidates`, least worth keeping first."""
        return sorted(candidates, key=lambda key: (self._credits[key].value, self._credits[key].used))

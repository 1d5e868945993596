"""Which resident thing goes first when room is needed: cost-aware least-recently-used, by likelihood of need.

Greedy-dual by size: an entry's credit is the credit of the last one evicted plus what a byte of it costs
to bring back, times how likely it is to be wanted. What is cheap, unlikely and long unused goes first; what
is dear stays longer, but not for ever. While nobody has said what is likely, all count alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from firstlight.domain.autoscaling.eviction import loss_per_byte

# Seconds a GiB: the scale only has to be one for all keys.
SCALE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class _Use:
    floor: float  # credit of the last one evicted before it
    cost_s: float
    size_bytes: int
    used: int  # breaks ties by least recent use


class EvictionOrder:
    """Keys by how soon they should go. Knows nothing of pins: the caller names who may go."""

    def __init__(self) -> None:
        self._last_uses: dict[str, _Use] = {}
        self._needs: Mapping[str, float] = {}
        self._floor = 0.0
        self._uses = count()

    def touch(self, key: str, *, cost_s: float, size_bytes: int) -> None:
        """Note a use now. `cost_s` is the time it would take to bring `size_bytes` back."""
        self._last_uses[key] = _Use(self._floor, cost_s, size_bytes, next(self._uses))

    def expect(self, needs: Mapping[str, float]) -> None:
        """How likely each key is to be wanted soon, 0 to 1; of those not named nothing is known any more."""
        self._needs = dict(needs)

    def evicted(self, key: str) -> None:
        """Forget a key that went to make room; the others age by its credit."""
        self._floor = max(self._floor, self._credit(key))
        del self._last_uses[key]

    def forget(self, key: str) -> None:
        """Forget a key that went for another reason."""
        self._last_uses.pop(key, None)

    def first_to_go(self, candidates: set[str]) -> list[str]:
        """`candidates`, least worth keeping first."""
        return sorted(candidates, key=lambda key: (self._credit(key), self._last_uses[key].used))

    def _credit(self, key: str) -> float:
        use = self._last_uses[key]
        need = self._needs.get(key)
        return use.floor + SCALE_BYTES * loss_per_byte(
            bring_back_s=use.cost_s, size_bytes=use.size_bytes, need=need
        )

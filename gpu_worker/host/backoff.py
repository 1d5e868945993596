"""How long to wait before starting again what keeps ending. Pure."""

from __future__ import annotations

FIRST_S = 0.1
LONGEST_S = 10.0
# What lived this long was well: the next end of it is not one more of a series.
STABLE_S = 20.0


class Backoff:
    """Doubles with each early end, begins anew after a long life."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after(self, *, lived_s: float) -> float:
        """Seconds to wait, given how long the last one lived."""
        if lived_s >= STABLE_S:
            self._next_s = FIRST_S
        delay_s, self._next_s = self._next_s, min(self._next_s * 2, LONGEST_S)
        return delay_s

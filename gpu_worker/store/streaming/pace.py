"""How much to ask of a source at once: enough to keep its link full, little enough to keep the order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SMALLEST_BYTES = 256 * 2**10
LARGEST_BYTES = 16 * 2**20
FIRST_BYTES = 2**20
# All that is under way takes this long on the link, and twice as long as an answer takes to begin: what
# stands first in the order is late by no more, and the link never waits for a request.
IN_FLIGHT_S = 0.04
MOST_IN_FLIGHT_S = 0.5
WINDOW_S = 1.0


class Pace:
    """Measures what comes in, over the last second."""

    def __init__(
        self, *, parallelism: int, latency_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`latency_s`: how long the source took to answer when little was asked."""
        self._in_flight_s = min(IN_FLIGHT_S + 2 * latency_s, MOST_IN_FLIGHT_S)
        self._parallelism = parallelism
        self._clock = clock
        self._came: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._began = clock()

    def note(self, size_bytes: int) -> None:
        now = self._clock()
        self._came.append((now, size_bytes))
        self._sum += size_bytes
        while self._came[0][0] < now - WINDOW_S:
            self._sum -= self._came.popleft()[1]

    @property
    def request_bytes(self) -> int:
        elapsed_s = min(self._clock() - self._began, WINDOW_S)
        if self._sum < 4 * FIRST_BYTES or elapsed_s <= 0:
            return FIRST_BYTES
        wanted = int(self._sum / elapsed_s * self._in_flight_s / self._parallelism)
        return max(SMALLEST_BYTES, min(wanted, LARGEST_BYTES)) // 4096 * 4096

"""What happens next: a heap of events and the simulated clock. Ties are broken by the order of asking."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush


class Event:
    """One thing that will happen, unless it is cancelled before."""

    __slots__ = ("act", "at_s", "is_cancelled")

    def __init__(self, at_s: float, act: Callable[[], None]) -> None:
        self.at_s = at_s
        self.act = act
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Agenda:
    """`now_s` counts from the beginning of the scenario."""

    __slots__ = ("_asked", "_heap", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Event]] = []
        self._asked = 0

    def at(self, at_s: float, act: Callable[[], None]) -> Event:
        """Have `act` called at `at_s`; a time that has passed means now."""
        event = Event(max(at_s, self.now_s), act)
        self._asked += 1
        heappush(self._heap, (event.at_s, self._asked, event))
        return event

    def after(self, delay_s: float, act: Callable[[], None]) -> Event:
        return self.at(self.now_s + delay_s, act)

    def run(self, *, is_over: Callable[[], bool]) -> None:
        """Until nothing is left to happen, or `is_over`."""
        heap = self._heap
        while heap and not is_over():
            at_s, _, event = heappop(heap)
            if not event.is_cancelled:
                self.now_s = at_s
                event.act()

"""A disk or a wire that serves one transfer after another, and lends its idle time to what can wait."""

from __future__ import annotations

from collections.abc import Callable

from simulator.agenda import Agenda


class Link:
    """First come, first served. Times follow from arithmetic, so a transfer costs no events of its own."""

    __slots__ = ("_busy_s", "bytes_per_s", "until_s")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        # When all that was promised is done.
        self.until_s = 0.0
        # Seconds of work promised so far, whether done yet or not.
        self._busy_s = 0.0

    def queued_bytes(self, now_s: float) -> int:
        return int(max(0.0, self.until_s - now_s) * self.bytes_per_s)

    def reserve(self, size_bytes: float, *, now_s: float, share: float = 1.0) -> tuple[float, float]:
        """Promise a transfer at `share` of the rate. Returns when it begins and ends."""
        begin_s = max(now_s, self.until_s)
        taken_s = size_bytes / (self.bytes_per_s * share)
        return begin_s, self.hold(begin_s, taken_s)

    def hold(self, begin_s: float, taken_s: float) -> float:
        """Take the link from `begin_s` (not before what is promised) for `taken_s`. Returns the end."""
        assert begin_s >= self.until_s - 1e-9, "a link serves one transfer after another"
        self.until_s = begin_s + taken_s
        self._busy_s += taken_s
        return self.until_s

    def busy_s(self, now_s: float) -> float:
        """Seconds spent on promised transfers up to `now_s`, up to what a wait within the queue adds."""
        return self._busy_s - max(0.0, self.until_s - now_s)


class Background:
    """One transfer that goes on only while its link has nothing promised."""

    __slots__ = ("_agenda", "_began_busy_s", "_began_s", "_event", "_link", "_needs_s", "_on_done")

    def __init__(self, agenda: Agenda, link: Link, size_bytes: float, on_done: Callable[[], None]) -> None:
        self._agenda = agenda
        self._link = link
        self._on_done = on_done
        self._needs_s = size_bytes / link.bytes_per_s
        self._began_s = agenda.now_s
        self._began_busy_s = link.busy_s(agenda.now_s)
        self._event = agenda.at(max(agenda.now_s, link.until_s) + self._needs_s, self._look)

    def remaining_bytes(self) -> float:
        now_s = self._agenda.now_s
        idle_s = (now_s - self._began_s) - (self._link.busy_s(now_s) - self._began_busy_s)
        return max(0.0, self._needs_s - idle_s) * self._link.bytes_per_s

    def cancel(self) -> None:
        self._event.cancel()

    def _look(self) -> None:
        left_s = self.remaining_bytes() / self._link.bytes_per_s
        if left_s <= 1e-9:
            self._on_done()
            return
        now_s = self._agenda.now_s
        self._event = self._agenda.at(max(now_s, self._link.until_s) + left_s, self._look)

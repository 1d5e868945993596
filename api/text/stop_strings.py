"""Stop strings in a stream: hold back only what could still become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Cuts a text before the stop string that is complete first (of two that end together, the longer).

    The cut does not depend on how the text is split into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_stopped = False

    def feed(self, piece: str) -> str:
        """Text that is certain not to be part of a stop string; nothing once one was found."""
        if not self._stops or self.is_stopped:
            return "" if self.is_stopped else piece
        text = self._held + piece
        if (cut := self._first_cut(text)) is not None:
            self.is_stopped = True
            self._held = ""
            return text[:cut]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held, when the stream ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_cut(self, text: str) -> int | None:
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, the whole of it excluded."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

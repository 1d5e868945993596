"""What starts and moves under way have said of themselves lately: in memory, for who looks on.

Words come about once a second; of whom none comes any more nothing is claimed. No decision is made by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from firstlight.contracts.progress import MoveProgress, Progress, StartProgress
from firstlight.database.progress_news import parse_progress

FORGET_AFTER_S = 10.0
Word = TypeVar("Word", bound=Progress)


@dataclass(frozen=True, slots=True)
class Heard(Generic[Word]):
    """`since_unix_s`: when what goes on began, by this process's clock; hosts have their own."""

    word: Word
    since_unix_s: float
    heard_unix_s: float


class ProgressBook:
    """`starts` by instance, `moves` by migration."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._starts: dict[str, Heard[StartProgress]] = {}
        self._moves: dict[str, Heard[MoveProgress]] = {}

    def hear(self, payload: str) -> None:
        """Take a notification.

        Raises: ValueError, KeyError, TypeError or AttributeError for one of another release.
        """
        word, now = parse_progress(payload), self._clock()
        if isinstance(word, MoveProgress):
            self._moves = {**self.moves(), word.migration_id: Heard(word, now - word.move_s, now)}
            return
        known = self.starts()
        # Checked where it was said; a plan may have been replaced on the way here.
        if word.instance_id not in known or known[word.instance_id].word.epoch <= word.epoch:
            self._starts = {**known, word.instance_id: Heard(word, now - word.phase_s, now)}

    def starts(self) -> dict[str, Heard[StartProgress]]:
        return _of_late(self._starts, self._clock())

    def moves(self) -> dict[str, Heard[MoveProgress]]:
        return _of_late(self._moves, self._clock())

    def start_of(self, instance_id: str, epoch: int) -> StartProgress | None:
        """Its last word, if it is of this plan and of late."""
        heard = self.starts().get(instance_id)
        return heard.word if heard is not None and heard.word.epoch == epoch else None


def _of_late(book: dict[str, Heard[Word]], now: float) -> dict[str, Heard[Word]]:
    return {about: heard for about, heard in book.items() if now - heard.heard_unix_s <= FORGET_AFTER_S}

"""Beside the activities of one host: tells whoever looks on how far its starts and moves are.

Nothing waits for it. An activity changes its own figures in memory as it always did; one task looks at all of
them now and then, and has one transaction of Postgres in hand at most. One that is slow or away costs words.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firstlight.contracts.progress import Progress, StartProgress
from firstlight.database.connection import Database
from firstlight.database.progress_news import tell_progress
from firstlight.domain.errors import FirstlightError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
# Nobody could read what a start from DRAM or a fast SSD would say, and it shall not pay for saying it.
FIRST_AFTER_S = 0.5
# A change of phase is told at the next look; bytes, and that it goes on at all, so often.
AGAIN_AFTER_S = 1.0


@dataclass(slots=True, eq=False)
class _Ongoing:
    stands: Callable[[], Progress]
    next_s: float
    phase: str = ""

    def word(self, now_s: float) -> Progress | None:
        """What is to be told now, if anything."""
        if now_s < self.next_s and not self.phase:
            return None
        word = self.stands()
        phase = word.phase if isinstance(word, StartProgress) else "move"
        if now_s < self.next_s and phase == self.phase:
            return None
        self.phase, self.next_s = phase, now_s + AGAIN_AFTER_S
        return word


class Teller:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._ongoing: list[_Ongoing] = []
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def telling(self, stands: Callable[[], Progress]) -> Iterator[None]:
        """Meanwhile, what `stands` says is told. Returns at once, and so does its end."""
        one = _Ongoing(stands, time.monotonic() + FIRST_AFTER_S)
        self._ongoing.append(one)
        if self._task is None or self._task.done():
            # Ends by itself when nothing goes on: never cancelled with a statement on its way.
            self._task = asyncio.create_task(self._run(), name="progress of starts and moves")
        try:
            yield
        finally:
            self._ongoing.remove(one)

    async def _run(self) -> None:
        while self._ongoing:
            now_s = time.monotonic()
            words = [word for one in self._ongoing if (word := one.word(now_s)) is not None]
            if words:
                await self._tell(words)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _tell(self, words: list[Progress]) -> None:
        try:
            async with self._database.transaction() as session:
                await tell_progress(session, words)
        except FirstlightError as failure:
            log.debug("progress not told: %s", failure.message)

"""What the API sees of each model's requests, kept in Postgres every few seconds as spells of activity.

The request's path pays for two dictionary entries; the row is written behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from firstlight.database.arrivals_repository import Spell, record_activity
from firstlight.database.connection import Database
from firstlight.domain.autoscaling.arrivals import SHORTEST_GAP_S
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
# While Postgres is away the latest of a model's spells are kept, and the oldest are forgotten.
SPELLS_KEPT = 64


class ArrivalRecorder:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: Counter[str] = Counter()
        self._since_unix_s: dict[str, float] = {}
        self._spells: dict[str, list[Spell]] = {}

    @contextmanager
    def active(self, model: str) -> Iterator[None]:
        """One request of `model`, from its arrival to its end, however it ends."""
        if not self._running[model]:
            self._since_unix_s[model] = time.time()
        self._running[model] += 1
        try:
            yield
        finally:
            self._running[model] -= 1
            if not self._running[model]:
                del self._running[model]
                self._note(model, self._since_unix_s.pop(model), time.time())

    async def run(self) -> None:
        """Never returns; cancel it to stop."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Keep what has been seen; what cannot be written now is written the next time."""
        now_unix_s = time.time()
        for model, since_unix_s in self._since_unix_s.items():
            self._note(model, since_unix_s, now_unix_s)
            self._since_unix_s[model] = now_unix_s
        if not (spells := self._spells):
            return
        self._spells = {}
        is_written = False
        try:
            async with self._database.transaction() as session:
                await record_activity(session, spells)
            is_written = True
        except FirstlightError as error:
            logger.debug("arrivals are written later: %s", error.message)
        finally:
            if not is_written:
                self._take_back(spells)

    def _take_back(self, spells: dict[str, list[Spell]]) -> None:
        newer, self._spells = self._spells, spells
        for model, more in newer.items():
            for spell in more:
                self._note(model, spell.from_unix_s, spell.until_unix_s)

    def _note(self, model: str, from_unix_s: float, until_unix_s: float) -> None:
        spells = self._spells.setdefault(model, [])
        if spells and from_unix_s - spells[-1].until_unix_s < SHORTEST_GAP_S:
            last = spells.pop()
            from_unix_s, until_unix_s = last.from_unix_s, max(last.until_unix_s, until_unix_s)
        spells.append(Spell(from_unix_s, until_unix_s))
        del spells[:-SPELLS_KEPT]

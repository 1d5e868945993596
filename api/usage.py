"""What each key has used, added up in memory and written every few seconds: no request waits for SQL."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from firstlight.database.connection import Database
from firstlight.database.usage_repository import Usage, UsageKey, add_usage
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
# Of a request that was turned away before its model was known.
ANY_MODEL = "-"


class UsageRecorder:
    """Exact while the process lives; a killed one loses at most the last `WRITE_EVERY_S`."""

    def __init__(self, database: Database, *, now_unix_s: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now_unix_s = now_unix_s
        self._waiting: dict[UsageKey, Usage] = {}

    def note(self, key_id: str, model: str, usage: Usage) -> None:
        hour = int(self._now_unix_s() // 3600) * 3600
        key = UsageKey(key_id=key_id, hour_unix_s=hour, model=model)
        self._waiting[key] = self._waiting.get(key, Usage()) + usage

    async def run(self) -> None:
        """Never returns; cancel it to stop."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Keep what has been used; what cannot be written now is written the next time."""
        if not (rows := self._waiting):
            return
        self._waiting = {}
        is_written = False
        try:
            async with self._database.transaction() as session:
                await add_usage(session, rows)
            is_written = True
        except FirstlightError as error:
            logger.warning("what keys have used is written later: %s", error.message)
        finally:
            if not is_written:
                for key, usage in rows.items():
                    self._waiting[key] = self._waiting.get(key, Usage()) + usage

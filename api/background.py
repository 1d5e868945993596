"""Work that nobody waits for: kept alive until done, its failures logged, cancelled at shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)


class Background:
    """Owns its tasks: asyncio alone would let a task without a reference vanish."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (failure := task.exception()) is None:
            return
        if isinstance(failure, FirstlightError):
            logger.debug("%s: %s", task.get_name(), failure.message)
        else:
            logger.error("%s ended by a bug", task.get_name(), exc_info=failure)

"""Work that several callers wait for: done once, watched by any number, stopped by none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

Progress = TypeVar("Progress")


class SharedWork(Generic[Progress]):
    """One task and the latest of its progress. A watcher that leaves does not end the task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watchers = 0
        self._left_s = time.monotonic()

    # Any: what a coroutine yields and is sent is asyncio's own affair.
    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._ended)
        return self._task

    @property
    def is_watched(self) -> bool:
        """Whether anybody waits for it now."""
        return self._watchers > 0

    @property
    def unwatched_s(self) -> float:
        """How long nobody has waited for it."""
        return 0.0 if self._watchers else time.monotonic() - self._left_s

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def task(self) -> asyncio.Task[None]:
        assert self._task is not None, "the work was started when it was shared"
        return self._task

    def tell(self, progress: Progress) -> None:
        """Publish; a slow watcher sees the latest only."""
        self._progress = progress
        self._wake()

    async def watch(self, *, interval_s: float = 0.1) -> AsyncGenerator[Progress, None]:
        """Progress as it changes, at most every `interval_s`, the last one always.

        Raises what the work raised.
        """
        with self._watching():
            while not self.task.done():
                changed = self._changed
                yield self._progress
                await changed.wait()
                if not self.task.done():
                    await asyncio.wait([self.task], timeout=interval_s)
        self.task.result()
        yield self._progress

    async def wait(self) -> Progress:
        """Until it is done. Raises what the work raised."""
        with self._watching():
            await asyncio.shield(self.task)
        return self._progress

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            self._left_s = time.monotonic()

    def _wake(self) -> None:
        # A fresh event each time, so that nobody misses a change between looking and waiting.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # looked at, so that work nobody watches is not reported as lost
        self._wake()

"""The process that plans conversions: it needs torch, the store does not; kept warm between questions."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstlight.domain.errors import SourceCorrupt, error_type
from gpu_worker.store.streaming import planner_process
from gpu_worker.store.streaming.planner_process import PlannerProcess

log = logging.getLogger("store.plan")

PLANNER = (sys.executable, "-m", "gpu_worker.convert", "--serve-plans")
# It holds a few hundred megabytes; the next question after this long pays for a new start.
IDLE_S = 600.0
# Of one that nobody waits for yet.
NICENESS = 5


class Planner:
    """One question at a time, in the order they come. Raises what the conversion itself would raise.

    Its process is forked by the zygote behind the socket `forked_at`, or where there is none runs `command`.
    It ends when nothing was asked for `idle_s`; None keeps it.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = PLANNER,
        forked_at: Path | None = None,
        idle_s: float | None = IDLE_S,
    ) -> None:
        self._command = tuple(command)
        self._forked_at = forked_at
        self._idle_s = idle_s
        self._turn = asyncio.Lock()
        self._process: PlannerProcess | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None

    def warm(self, *, niceness: int = 0) -> None:
        """Have it ready soon; answers at once.

        A positive niceness is kept for life by one that imports for itself, which takes seconds of a core.
        """
        if self._warming is None or self._warming.done():
            self._warming = asyncio.get_running_loop().create_task(self._warm(niceness))
            # A failure is met again by whoever asks; here it is only looked at.
            self._warming.add_done_callback(lambda done: done.cancelled() or done.exception())

    def warm_later(self, after_s: float) -> None:
        """Have it ready before anybody asks, but not while everything else is starting."""
        self._later = asyncio.get_running_loop().call_later(after_s, lambda: self.warm(niceness=NICENESS))

    async def plan(self, folder: Path, output: Path, *, dtype: str, model: str, revision: str) -> str | None:
        """Have the plan written to `output`; None when it was, else why this model is converted whole."""
        began = time.monotonic()
        answer = await self._ask(
            {
                "plan": str(folder),
                "output": str(output),
                "dtype": dtype,
                "model": model,
                "revision": revision,
            }
        )
        log.info("planned in_s=%.3f of_which_planning_s=%s", time.monotonic() - began, answer.get("seconds"))
        return str(answer["staged"]) if "staged" in answer else None

    async def tokenizer(self, folder: Path, output: Path) -> tuple[str, ...]:
        """Names of the tokenizer's files, as a checkpoint keeps them, written to `output`."""
        answer = await self._ask({"tokenizer": str(folder), "output": str(output)})
        return tuple(str(name) for name in answer["files"])

    async def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        await self._end()

    async def _warm(self, niceness: int) -> None:
        async with self._turn:
            await self._started(niceness)
            self._rest()

    # Any: a line of the planner's JSON.
    async def _ask(self, question: dict[str, str]) -> dict[str, Any]:
        async with self._turn:
            if self._ending is not None:
                self._ending.cancel()
            try:
                process = await self._started()
                answer = await process.ask(question)
            except BaseException:
                # Half a conversation, and nobody to tell which answer belongs to what.
                await self._end()
                raise
            self._rest()
        if (code := answer.get("error")) is not None:
            kind = error_type(str(code))
            if kind.code == "manifest_invalid":
                raise SourceCorrupt(str(answer.get("message")))
            raise kind(str(answer.get("message")))
        return answer

    async def _started(self, niceness: int = 0) -> PlannerProcess:
        if self._process is not None and self._process.has_ended:
            await self._end()
        if self._process is None:
            began = time.monotonic()
            forked = None
            if self._forked_at is not None:
                forked = await planner_process.forked_at(self._forked_at)
            self._process = forked or await planner_process.started(self._command, niceness=niceness)
            how = "started" if forked is None else "forked"
            log.info("planner warm in_s=%.2f by=%s", time.monotonic() - began, how)
        return self._process

    def _rest(self) -> None:
        if self._idle_s is not None:
            self._ending = asyncio.get_running_loop().call_later(self._idle_s, self._end_when_idle)

    def _end_when_idle(self) -> None:
        if not self._turn.locked() and self._process is not None:
            log.info("planner ends, nothing was asked for a while")
            self._process.kill()

    async def _end(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        if self._process is not None:
            process, self._process = self._process, None
            await process.end()

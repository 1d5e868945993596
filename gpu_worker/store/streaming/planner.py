"""The process that plans conversions: it needs torch, the store does not; kept warm between questions."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstlight.domain.errors import FirstlightError, SourceCorrupt, error_type
from gpu_worker.store.tied_process import kill_group, start_tied

log = logging.getLogger("store.plan")

PLANNER = (sys.executable, "-m", "gpu_worker.convert", "--serve-plans")
# It holds a few hundred megabytes; the next question after this long pays for a new start.
IDLE_S = 600.0
# Of one that nobody waits for yet.
NICENESS = 5


class Planner:
    """One question at a time, in the order they come. Raises what the conversion itself would raise.

    Its process ends when nothing was asked for `idle_s`; None keeps it.
    """

    def __init__(self, *, command: Sequence[str] = PLANNER, idle_s: float | None = IDLE_S) -> None:
        self._command = tuple(command)
        self._idle_s = idle_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None

    def warm(self, *, niceness: int = 0) -> None:
        """Have it ready soon; answers at once. A positive niceness is kept for its life."""
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
                answer = await _exchange(process, question)
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

    async def _started(self, niceness: int = 0) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            began = time.monotonic()
            self._process = await start_tied(
                self._command,
                env={"TQDM_DISABLE": "1"},
                has_output=True,
                has_input=True,
                niceness=niceness,
            )
            await _line(self._process)
            log.info("planner warm in_s=%.2f", time.monotonic() - began)
        return self._process

    def _rest(self) -> None:
        if self._idle_s is not None:
            self._ending = asyncio.get_running_loop().call_later(self._idle_s, self._end_when_idle)

    def _end_when_idle(self) -> None:
        if not self._turn.locked() and self._process is not None:
            log.info("planner ends, nothing was asked for a while")
            kill_group(self._process)

    async def _end(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        if self._process is not None:
            kill_group(self._process)
            await self._process.wait()
            self._process = None


async def _exchange(process: asyncio.subprocess.Process, question: dict[str, str]) -> dict[str, Any]:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()
    except OSError as failure:
        raise FirstlightError(f"the planner of conversions is gone: {failure}") from failure
    return await _line(process)


async def _line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        try:
            message = json.loads(line)
        except ValueError:
            log.info("planner said %s", line[:200])
            continue
        if isinstance(message, dict):
            return message
    raise FirstlightError("the planner of conversions ended without a word; memory may have run out")

"""A planner of conversions in a process of its own: forked by the zygote of engines, or started here.

The zygote has torch and transformers in memory already: a planner forked from it is ready in a fraction of a
second and shares its pages. One that is started here imports them for itself, in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.domain.errors import FirstlightError
from gpu_worker.store.tied_process import kill_group, start_tied

log = logging.getLogger("store.plan")

# A zygote that has just begun imports first, which takes a slow or busy machine this long at most.
FORKED_WITHIN_S = 60.0
_LINE_LIMIT_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class PlannerProcess:
    """Ready for questions. `kill` ends it at once, and has to be called of one that has ended, too."""

    questions: asyncio.StreamWriter
    answers: asyncio.StreamReader
    kill: Callable[[], None]

    @property
    def has_ended(self) -> bool:
        return self.answers.at_eof() or self.answers.exception() is not None

    # Any: a line of the planner's JSON.
    async def ask(self, question: dict[str, str]) -> dict[str, Any]:
        """Raises: FirstlightError when it is gone."""
        try:
            self.questions.write(json.dumps(question).encode() + b"\n")
            await self.questions.drain()
            return await _line(self.answers)
        except OSError as failure:
            raise FirstlightError(f"the planner of conversions is gone: {failure}") from failure

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.kill()
        with contextlib.suppress(OSError):
            await self.answers.read()
        self.questions.close()


async def forked_at(socket_path: Path) -> PlannerProcess | None:
    """One that the zygote behind `socket_path` forks; None where there is none, or it ends."""
    if not socket_path.exists():
        return None
    try:
        async with asyncio.timeout(FORKED_WITHIN_S):
            answers, questions = await asyncio.open_unix_connection(socket_path, limit=_LINE_LIMIT_BYTES)
            try:
                pid = int((await _line(answers))["pid"])
                # It holds its end of the connection: this is still the process that has just answered.
                return PlannerProcess(questions, answers, _Killing(os.pidfd_open(pid)))
            except BaseException:
                # Its planner finds nobody to answer, and ends.
                questions.close()
                raise
    except (OSError, TimeoutError, FirstlightError) as failure:
        log.warning("planner not forked: %s", str(failure) or f"not within {FORKED_WITHIN_S:g} s")
        return None


async def started(command: Sequence[str], *, niceness: int = 0) -> PlannerProcess:
    """One of this process's own, which dies with it. Raises: FirstlightError when it ends instead."""
    process = await start_tied(
        command, env={"TQDM_DISABLE": "1"}, has_output=True, has_input=True, niceness=niceness
    )
    assert process.stdin is not None and process.stdout is not None
    ready = PlannerProcess(process.stdin, process.stdout, lambda: kill_group(process))
    try:
        await _line(process.stdout)
    except BaseException:
        await ready.end()
        raise
    return ready


class _Killing:
    """Kills by a pidfd, once: the pid may be another process's by the next time."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd: int | None = pidfd

    def __call__(self) -> None:
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


# Any: a line of the planner's JSON.
async def _line(answers: asyncio.StreamReader) -> dict[str, Any]:
    while line := await answers.readline():
        try:
            message = json.loads(line)
        except ValueError:
            log.info("planner said %s", line[:200])
            continue
        if isinstance(message, dict):
            return message
    raise FirstlightError("the planner of conversions ended without a word; memory may have run out")

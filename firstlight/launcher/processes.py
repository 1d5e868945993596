"""Supervision of role processes: spawn, restart with back-off, stop in order within a deadline.

Every role has its own process group and log file, and ends with the launcher whatever ends the launcher.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.launcher.log_files import open_log, tail
from firstlight.launcher.parent_death import die_with_parent
from firstlight.launcher.process_marks import ProcessMark, mark

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 10.0
# A role that ran for so long was healthy: its next crash is a new one.
HEALTHY_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """One role: how to start it, and how long it may take to stop by itself."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log_path: Path
    stop_s: float = 10.0


@dataclass(slots=True)
class _Role:
    spec: RoleSpec
    process: asyncio.subprocess.Process | None = None
    process_mark: ProcessMark | None = None
    task: asyncio.Task[None] | None = None
    crashes_in_a_row: int = 0
    is_stopping: bool = field(default=False)


class Supervisor:
    """Keeps roles running. `say` gets one sentence per restart; `changed` is called after every spawn."""

    def __init__(self, *, say: Callable[[str], None], changed: Callable[[], object] = lambda: None) -> None:
        self._say = say
        self._changed = changed
        self._roles: dict[str, _Role] = {}

    async def start(self, spec: RoleSpec) -> None:
        """Spawn the role and keep it running. Raises: OSError when it cannot be spawned at all."""
        role = _Role(spec)
        self._roles[spec.name] = role
        await self._spawn(role)
        role.task = asyncio.create_task(self._keep(role), name=f"keep {spec.name}")

    def marks(self) -> dict[str, ProcessMark]:
        return {name: role.process_mark for name, role in self._roles.items() if role.process_mark}

    def crashes_in_a_row(self, name: str) -> int:
        return self._roles[name].crashes_in_a_row

    def log_tail(self, name: str, lines: int = 15) -> str:
        return tail(self._roles[name].spec.log_path, lines)

    async def stop_all(self) -> None:
        """Stop the roles, last started first; each gets its `stop_s`, then SIGKILL for its group."""
        for role in reversed(self._roles.values()):
            await self._stop(role)
        self._roles.clear()

    async def stop_together(self, names: list[str]) -> None:
        """Stop several roles at the same time."""
        await asyncio.gather(*(self._stop(self._roles.pop(name)) for name in names if name in self._roles))

    def kill_all(self) -> None:
        """SIGKILL every role's group now: the user has no patience left."""
        for role in self._roles.values():
            role.is_stopping = True
            _kill_group(role)

    async def _spawn(self, role: _Role) -> None:
        spec = role.spec
        with open_log(spec.log_path) as log:
            role.process = await asyncio.create_subprocess_exec(
                *spec.argv,
                env=dict(spec.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own group: Ctrl-C reaches the launcher alone, which stops the roles in order.
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        role.process_mark = mark(role.process.pid)
        self._changed()

    async def _keep(self, role: _Role) -> None:
        while True:
            assert role.process is not None
            began_s = time.monotonic()
            code = await role.process.wait()
            if role.is_stopping:
                return
            # What the role left behind in its group must be gone before its successor starts.
            _kill_group(role)
            ran_s = time.monotonic() - began_s
            role.crashes_in_a_row = 1 if ran_s >= HEALTHY_S else role.crashes_in_a_row + 1
            pause_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (role.crashes_in_a_row - 1))
            self._say(
                f"{role.spec.name} ended ({_describe(code)}) after {ran_s:.1f} s and starts again "
                f"in {pause_s:.2g} s; see {role.spec.log_path}"
            )
            await asyncio.sleep(pause_s)
            if role.is_stopping:
                return
            await self._spawn(role)

    async def _stop(self, role: _Role) -> None:
        role.is_stopping = True
        process = role.process
        if process is not None and process.returncode is None:
            _send(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), role.spec.stop_s)
            except TimeoutError:
                self._say(f"{role.spec.name} did not stop within {role.spec.stop_s:.2g} s and was killed")
        _kill_group(role)
        if process is not None:
            await process.wait()
        if role.task is not None:
            role.task.cancel()
            await asyncio.gather(role.task, return_exceptions=True)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_group(role: _Role) -> None:
    # The group's id is the role's pid, and stays taken as long as any member lives.
    if role.process is not None:
        try:
            os.killpg(role.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

"""Child processes that cannot outlive this one, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_TIE = str(Path(__file__).with_name("tie.py"))


async def start_tied(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    has_output: bool = False,
    has_input: bool = False,
    niceness: int = 0,
) -> asyncio.subprocess.Process:
    """Start `argv` in a process group of its own, killed by the kernel when this process ends.

    Call it from the main thread: the kernel ties a child to the thread that forked it.
    `env` adds to this process's environment. With `has_output`, its standard output is a pipe,
    with `has_input` its standard input.
    A positive `niceness` lets what serves requests go first.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", _TIE, str(os.getpid()), str(niceness), *argv),
        env={**os.environ, **(env or {})},
        stdin=asyncio.subprocess.PIPE if has_input else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if has_output else None,
        start_new_session=True,
        limit=2**20,
    )


def kill_group(process: asyncio.subprocess.Process, signal_number: int = signal.SIGKILL) -> None:
    """Signal the child's whole group, so that what it started goes too."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)


def kill_remains(process: asyncio.subprocess.Process) -> None:
    """Kill what a child that just ended left in its group. Only right after its end: ids are used again."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def end_group(process: asyncio.subprocess.Process, *, grace_s: float) -> int:
    """SIGTERM, then after `grace_s` SIGKILL; answers its exit status once it is gone."""
    kill_group(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        kill_group(process)
    status = await process.wait()
    kill_remains(process)
    return status

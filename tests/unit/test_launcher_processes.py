"""Supervision of role processes, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from firstlight.launcher.process_marks import ProcessMark, end_processes, is_running, mark
from firstlight.launcher.processes import RoleSpec, Supervisor

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def spec(folder: Path, program: str, *, name: str = "role", stop_s: float = 5.0) -> RoleSpec:
    return RoleSpec(
        name=name,
        argv=(sys.executable, "-c", program),
        env=dict(os.environ),
        log_path=folder / f"{name}.log",
        stop_s=stop_s,
    )


async def until(is_true: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def log_of(folder: Path, name: str = "role") -> str:
    path = folder / f"{name}.log"
    return path.read_text() if path.exists() else ""


@pytest.fixture
async def said() -> list[str]:
    return []


@pytest.fixture
async def supervisor(said: list[str]) -> AsyncIterator[Supervisor]:
    made = Supervisor(say=said.append)
    yield made
    await made.stop_all()


async def test_a_role_that_is_killed_comes_back_and_it_is_said(
    supervisor: Supervisor, said: list[str], tmp_path: Path
) -> None:
    await supervisor.start(spec(tmp_path, SLEEPER))
    first = supervisor.marks()["role"]
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: supervisor.marks()["role"] != first)
    assert is_running(supervisor.marks()["role"])
    assert len(said) == 1
    assert "role ended (signal SIGKILL)" in said[0]
    assert str(tmp_path / "role.log") in said[0]


async def test_a_role_that_keeps_ending_waits_longer_each_time(
    supervisor: Supervisor, said: list[str], tmp_path: Path
) -> None:
    await supervisor.start(spec(tmp_path, "raise SystemExit(3)"))
    await until(lambda: supervisor.crashes_in_a_row("role") >= 3)
    assert [line.partition("again in ")[2].split(" ")[0] for line in said[:3]] == ["0.25", "0.5", "1"]


async def test_stopping_ends_the_role_and_what_it_started(supervisor: Supervisor, tmp_path: Path) -> None:
    await supervisor.start(spec(tmp_path, PARENT))
    await until(lambda: log_of(tmp_path).endswith("\n"))
    child = mark(int(log_of(tmp_path)))
    role = supervisor.marks()["role"]
    assert child is not None
    await supervisor.stop_all()
    await until(lambda: not is_running(child) and not is_running(role))


async def test_a_role_deaf_to_sigterm_is_killed_at_its_deadline(
    supervisor: Supervisor, said: list[str], tmp_path: Path
) -> None:
    await supervisor.start(spec(tmp_path, DEAF, stop_s=0.3))
    await until(lambda: "up" in log_of(tmp_path))
    role = supervisor.marks()["role"]
    began_s = time.monotonic()
    await supervisor.stop_all()
    assert time.monotonic() - began_s < 5
    assert not is_running(role)
    assert said == ["role did not stop within 0.3 s and was killed"]


async def test_roles_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = f"""
    import asyncio, os, sys
    from pathlib import Path
    from firstlight.launcher.processes import RoleSpec, Supervisor

    async def main():
        supervisor = Supervisor(say=print)
        argv = (sys.executable, "-c", {SLEEPER!r})
        log_path = Path({str(tmp_path)!r}) / "role.log"
        await supervisor.start(RoleSpec(name="role", argv=argv, env=dict(os.environ), log_path=log_path))
        print(supervisor.marks()["role"].pid, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
    """
    launcher = subprocess.Popen(  # noqa: ASYNC220 - its stdout is one line, read below
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        role = mark(int(launcher.stdout.readline()))
    assert role is not None
    launcher.kill()
    launcher.wait()
    await until(lambda: not is_running(role))


def test_a_pid_used_again_is_another_process() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.DEVNULL) as stranger:
        real = mark(stranger.pid)
        assert real is not None
        impostor = ProcessMark(stranger.pid, "another boot/1")
        assert not is_running(impostor)
        assert end_processes([impostor], term_s=0.1) == []
        assert is_running(real)
        assert end_processes([real]) == [real]
    assert not is_running(real)


def test_ended_processes_have_no_mark() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as short:
        short.wait()
    assert mark(short.pid) is None

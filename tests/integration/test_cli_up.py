"""The whole of Firstlight on this machine, started and stopped by its own command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstlight.launcher.machine_checks import free_port
from firstlight.launcher.process_marks import ProcessMark, is_running, mark
from firstlight.launcher.run_file import RunRecord, read_run

READY_WITHIN_S = 120.0


class Installation:
    """One state directory with ports of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        ports = {f"FIRSTLIGHT_{name}": str(free_port("127.0.0.1")) for name in PORTS}
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")},
            **ports,
            "FIRSTLIGHT_STATE_DIR": str(state_dir),
            "FIRSTLIGHT_DRAM_CAPACITY_BYTES": str(64 << 20),
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "firstlight.cli", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def json(self, *arguments: str) -> object:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[bytes]]:
        """A run that is ready; stopped at the end if the body has not stopped it."""
        with (self.state_dir.parent / "up.txt").open("ab") as output:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "firstlight.cli", "up"], env=self.env, stdout=output, stderr=output
            )
        try:
            until(lambda: launcher.poll() is not None or self.is_ready(launcher.pid), within_s=READY_WITHIN_S)
            assert launcher.poll() is None, self.output()
            yield launcher
        finally:
            if launcher.poll() is None:
                launcher.terminate()
            launcher.wait(60)

    def is_ready(self, launcher_pid: int) -> bool:
        record = self.record()
        return record.launcher.pid == launcher_pid and record.is_ready

    def record(self) -> RunRecord:
        return read_run(self.state_dir) or RunRecord(launcher=ProcessMark(0, ""), api_url="")

    def output(self) -> str:
        return (self.state_dir.parent / "up.txt").read_text()


PORTS = ("API_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT")


def until(is_true: Callable[[], bool], *, within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        time.sleep(0.05)


def processes_of(record: RunRecord) -> list[ProcessMark]:
    """Every process of the run and all below them."""
    found, todo = [], [record.launcher, *record.processes.values()]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += [child for child in map(mark, _children(process.pid)) if child is not None]
    return list(dict.fromkeys(found))


def _children(pid: int) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            pids.append(int(stat.parent.name))
    return pids


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path / "state")
    yield made
    made.run("down", timeout_s=90)


@pytest.mark.slow
def test_up_serves_restarts_its_parts_and_stops_without_a_trace(installation: Installation) -> None:
    with installation.up() as launcher:
        record = installation.record()
        everything = processes_of(record)
        status = installation.json("status")
        assert isinstance(status, dict)
        assert (status["ready"], status["hosts"], status["temporal_ui"]) == (True, 2, record.temporal_ui_url)
        hosts = installation.json("hosts")
        assert isinstance(hosts, list)
        assert [(host["host_id"], host["state"]) for host in hosts] == [
            ("host-a", "ready"),
            ("host-b", "ready"),
        ]

        second = installation.run("up")
        assert second.returncode == 1
        assert f"pid {launcher.pid}" in second.stderr
        assert "firstlight down" in second.stderr

        os.kill(record.processes["api"].pid, signal.SIGKILL)
        os.kill(record.processes["temporal"].pid, signal.SIGKILL)
        until(lambda: installation.record().processes["api"] != record.processes["api"])
        until(lambda: installation.run("status").returncode == 0)
        assert "api ended (signal SIGKILL)" in installation.output()
        assert "temporal ended" in installation.output()

        everything += processes_of(installation.record())
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(60) == 0
    left = [process for process in set(everything) if is_running(process)]
    assert left == []
    assert read_run(installation.state_dir) is None


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_the_next_one_minds(installation: Installation) -> None:
    with installation.up() as launcher:
        everything = processes_of(installation.record())
        launcher.kill()
        launcher.wait()
    roles = [process for process in everything if process.pid != launcher.pid]
    until(lambda: not any(is_running(process) for process in roles))
    with installation.up():
        assert installation.run("status").returncode == 0
        assert installation.run("down", timeout_s=90).stdout == "stopped\n"


def test_down_with_nothing_running_says_so(installation: Installation) -> None:
    assert installation.run("down").stdout == "nothing runs here\n"


def test_a_taken_port_stops_up_at_once_and_names_its_setting(installation: Installation) -> None:
    import socket

    with socket.create_server(("127.0.0.1", int(installation.env["FIRSTLIGHT_TEMPORAL_UI_PORT"]))):
        done = installation.run("up")
    assert done.returncode == 1
    assert "FIRSTLIGHT_TEMPORAL_UI_PORT" in done.stderr
    assert not (installation.state_dir / "postgres").exists()

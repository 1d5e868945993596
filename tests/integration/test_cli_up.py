"""The whole of Firstlight on this machine, started and stopped by its own command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.launcher.process_marks import is_running
from firstlight.launcher.run_file import read_run
from tests.integration.installation import Installation, processes_of, until


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

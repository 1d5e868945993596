"""The whole of Firstlight on this machine, started and stopped by its own command line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from firstlight.launcher.process_marks import is_running
from firstlight.launcher.run_file import RunRecord, read_run
from tests.integration.installation import PORTS, Installation, processes_of, until


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

        for role, process in record.processes.items():
            below = processes_of(RunRecord(launcher=process, api_url=""))
            os.kill(process.pid, signal.SIGKILL)
            until(lambda role=role, process=process: installation.record().processes[role] != process)  # type: ignore[misc]
            # An orphan would hold a port, a lock or a GPU against its successor.
            until(lambda below=below: not any(map(is_running, below)))  # type: ignore[misc]
            assert f"{role} ended" in installation.output()
        until(lambda: installation.run("status").returncode == 0)

        everything += processes_of(installation.record())
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(60) == 0
    left = [process for process in set(everything) if is_running(process)]
    assert left == []
    assert read_run(installation.state_dir) is None


@pytest.mark.slow
def test_a_program_reads_where_everything_is_and_what_was_stopped(installation: Installation) -> None:
    command = [sys.executable, "-m", "firstlight.cli", "up", "--json", "--hosts", "host-a"]
    with subprocess.Popen(command, env=installation.env, stdout=PIPE, stderr=DEVNULL, text=True) as launcher:
        assert launcher.stdout is not None
        # The object's lines, up to its closing brace.
        found = json.loads("".join([*iter(launcher.stdout.readline, "}\n"), "}"]))
        assert found["api_url"] == f"http://127.0.0.1:{installation.env['FIRSTLIGHT_API_PORT']}"
        assert found["temporal_ui_url"] == installation.record().temporal_ui_url
        assert installation.json("down") == {"outcome": "stopped"}
        assert launcher.wait(60) == 0
        assert launcher.stdout.read() == ""
    assert installation.json("down") == {"outcome": "nothing runs here"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demonstration_answers_and_shows_what_its_start_took(installation: Installation) -> None:
    # One host is quicker up than two; the model needs half of this.
    installation.env |= {"FIRSTLIGHT_HOST_IDS": "host-a", "FIRSTLIGHT_DRAM_CAPACITY_BYTES": str(1 << 30)}
    done = installation.run("demo", timeout_s=540)
    assert done.returncode == 0, done.stdout + done.stderr
    told, _, timeline = done.stdout.partition("PHASE")
    answer = told.partition("> What is the capital of France")[2]
    assert "Paris" in answer
    assert "first token after" in answer
    assert "smollm2-135m-instruct on host-a, from remote  ready" in answer
    # Two spaces stand between columns: what, predicted, actual.
    rows = [re.split(r"  +", line.strip()) for line in timeline.splitlines()[1:] if line.strip()]
    actual = {name: seconds for name, _, seconds, *_ in rows}
    assert {"download", "attach", "workflow", "first token", "ready"} <= actual.keys()
    assert "-" not in actual.values()
    assert read_run(installation.state_dir) is None


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_the_next_one_minds(installation: Installation) -> None:
    installation.env["FIRSTLIGHT_HOST_IDS"] = "host-a"
    with installation.up() as launcher:
        everything = processes_of(installation.record())
        launcher.kill()
        launcher.wait()
    # At once, while the killed run's roles are still on their way out.
    with installation.up():
        assert not any(map(is_running, everything))
        assert installation.run("status").returncode == 0
        assert installation.run("down", timeout_s=90).stdout == "stopped\n"


def test_down_with_nothing_running_says_so(installation: Installation) -> None:
    assert installation.run("down").stdout == "nothing runs here\n"


@pytest.mark.parametrize("name", PORTS)
def test_a_taken_port_stops_up_at_once_and_names_its_setting(installation: Installation, name: str) -> None:
    with socket.create_server(("127.0.0.1", int(installation.env[f"FIRSTLIGHT_{name}"]))):
        done = installation.run("up")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert f"FIRSTLIGHT_{name}" in sentence
    assert not (installation.state_dir / "postgres").exists()


def test_damaged_data_is_left_alone_and_said_in_one_sentence(installation: Installation) -> None:
    server = EmbeddedPostgres(installation.state_dir)
    server.start()
    server.stop()
    data = installation.state_dir / "postgres" / "data"
    (data / "global").rename(data / "elsewhere")
    assert "Postgres did not start: could not find the database system" in sentence_of_up(installation)
    (data / "elsewhere").rename(data / "global")

    database = installation.state_dir / "temporal" / "temporal.db"
    # With its journal it would heal.
    for path in database.parent.glob("temporal.db*"):
        path.unlink()
    database.write_bytes(b"not a database" * 1000)
    assert "file is not a database" in sentence_of_up(installation)
    assert database.read_bytes() == b"not a database" * 1000
    assert server.pid is None, "what had started is stopped"


def sentence_of_up(installation: Installation) -> str:
    done = installation.run("up")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "choose another FIRSTLIGHT_STATE_DIR" in sentence
    return sentence


def test_up_listens_to_others_only_with_a_key(installation: Installation) -> None:
    installation.env["FIRSTLIGHT_API_HOST"] = "0.0.0.0"
    done = installation.run("up")
    assert done.returncode == 1
    assert "set FIRSTLIGHT_API_KEYS" in done.stderr
    assert not (installation.state_dir / "postgres").exists()

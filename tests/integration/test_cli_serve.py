"""Firstlight on a Postgres and a Temporal that run already: one role per process, and `up` with API keys."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client

from firstlight.cli.serve import EXAMPLE
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from tests.integration.conftest import execute, with_database
from tests.integration.installation import Installation, until
from tests.integration.live_cluster import leave_no_workflow
from tests.platform_fixtures import tiny_source

DATABASE = "given"
KEYS = "key-one, key-two"
PROGRAM = f"{sys.executable} -m firstlight.cli"


@pytest_asyncio.fixture(scope="module")
async def given(
    postgres_server: EmbeddedPostgres,
    temporal_server: EmbeddedTemporal,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Installation]:
    """An installation whose environment names an empty database and a Temporal without our settings."""
    url = postgres_server.start()
    execute(url, f'CREATE DATABASE "{DATABASE}"')
    made = Installation(tmp_path_factory.mktemp("given") / "state")
    made.env |= {
        "FIRSTLIGHT_DATABASE_URL": with_database(url, DATABASE),
        "FIRSTLIGHT_TEMPORAL_ADDRESS": temporal_server.address,
        "FIRSTLIGHT_API_KEYS": KEYS,
    }
    try:
        yield made
    finally:
        await leave_no_workflow(await Client.connect(temporal_server.address))
        execute(url, f'DROP DATABASE "{DATABASE}" WITH (FORCE)')


def keyless(installation: Installation) -> Installation:
    """The same from a shell that knows no key."""
    other = Installation(installation.state_dir)
    other.env = {name: value for name, value in installation.env.items() if "KEY" not in name}
    return other


def as_typed(line: str, given: Installation) -> str:
    """A line of the example with our ports; what the exports of the example name comes from `given`."""
    return line.replace("firstlight ", f"{PROGRAM} ").replace(
        "FIRSTLIGHT_API_PORT=8080", f"FIRSTLIGHT_API_PORT={given.env['FIRSTLIGHT_API_PORT']}"
    )


@contextmanager
def typed(line: str, given: Installation, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The line in a shell of its own, as in a terminal; Ctrl-C at the end, and it must end well."""
    with log.open("wb") as output:
        role = subprocess.Popen(
            ["sh", "-c", "exec env " + as_typed(line, given)], env=given.env, stdout=output, stderr=output
        )
    try:
        yield role
    finally:
        role.send_signal(signal.SIGINT)
        code = role.wait(30)
    assert code == 0, f"{line}: {code}\n{log.read_text()}"


@pytest.mark.slow
def test_the_example_of_serve_works_as_it_stands(given: Installation, tmp_path: Path) -> None:
    exports = [line for line in EXAMPLE if line.startswith("export ")]
    migrate, control_worker, gpu_host, api = (line for line in EXAMPLE if line not in exports)
    for role in ("api", "control-worker"):
        early = given.run("serve", role)
        assert early.returncode == 1
        assert "run `firstlight upgrade-database`" in early.stderr.splitlines()[-1]
    done = subprocess.run(
        ["sh", "-c", as_typed(migrate, given)], env=given.env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "it was empty" in done.stdout

    with (
        typed(control_worker, given, tmp_path / "control.log"),
        typed(gpu_host, given, tmp_path / "host.log"),
        typed(api, given, tmp_path / "api.log") as server,
    ):
        until(lambda: is_listening(api_url(given)) or server.poll() is not None)
        until(lambda: [row["state"] for row in listed(given, "hosts")] == ["ready"])
        source = tiny_source(tmp_path / "tiny")
        assert given.run("deploy", "tiny", str(source), "--wait").returncode == 0
        answer = given.run("chat", "tiny", "Hello", "--max-tokens", "4")
        assert answer.returncode == 0, answer.stderr
        assert "4 tokens" in answer.stdout
        assert [(row["host_id"], row["state"]) for row in listed(given, "ps")] == [("gpu-7", "ready")]


def test_a_role_without_a_cluster_says_what_is_missing(tmp_path: Path) -> None:
    alone = Installation(tmp_path / "state")
    alone.env["FIRSTLIGHT_HOST_IDS"] = "gpu-7"
    for role in ("api", "control-worker", "gpu-host"):
        done = alone.run("serve", role)
        assert done.returncode == 1
        (sentence,) = done.stderr.splitlines()
        assert "FIRSTLIGHT_DATABASE_URL must name" in sentence
    del alone.env["FIRSTLIGHT_HOST_IDS"]
    alone.env["FIRSTLIGHT_DATABASE_URL"] = "postgres://nobody@127.0.0.1:1/none"
    (sentence,) = alone.run("serve", "gpu-host").stderr.splitlines()
    assert "FIRSTLIGHT_HOST_IDS=host-a,host-b names 2 hosts" in sentence


@pytest.mark.parametrize(
    "setting, value, told",
    [
        ("DATABASE_URL", "mysql://a:secret@b/c", "FIRSTLIGHT_DATABASE_URL: it must read postgresql://"),
        ("DATABASE_URL", "postgresql://a:secret@127.0.0.1:1/c", "start it, or mend FIRSTLIGHT_DATABASE_URL"),
        ("TEMPORAL_ADDRESS", "localhost", "FIRSTLIGHT_TEMPORAL_ADDRESS: it must read HOST:PORT"),
        ("TEMPORAL_NAMESPACE", "nowhere", "mend FIRSTLIGHT_TEMPORAL_NAMESPACE"),
    ],
)
def test_up_names_the_given_server_that_is_wrong(
    given: Installation, setting: str, value: str, told: str
) -> None:
    wrong = Installation(given.state_dir.parent / "wrong")
    wrong.env = {**given.env, "FIRSTLIGHT_STATE_DIR": str(wrong.state_dir), f"FIRSTLIGHT_{setting}": value}
    done = wrong.run("up")
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("firstlight: ")]
    assert len(sentences) == 1 and told in sentences[0], done.stderr
    assert "secret" not in done.stderr
    # Nor does anything crash that was still under way beside it.
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr


@pytest.mark.slow
def test_up_on_given_servers_asks_everybody_for_a_key(given: Installation) -> None:
    given.env["FIRSTLIGHT_HOST_IDS"] = "host-a"
    with given.up():
        record = given.record()
        assert set(record.processes) == {"api", "control-worker", "host-a"}
        assert not (given.state_dir / "postgres").exists()
        # A shell with the keys of the API needs no other, and the data is the given database's.
        told = given.json("status")
        # Runs before this one have a say in how many there are of these, until their leases end.
        del told["instances"]
        assert told.pop("hosts") >= 1
        assert told == {
            "api": record.api_url,
            "ready": True,
            "models": 1,
            "temporal_ui": "",
            "roles": ["host-a", "control-worker", "api"],
        }
        stranger = keyless(given)
        for command in (("ps",), ("status",), ("chat", "tiny", "Hello"), ("deploy", "other", "hf://a/b")):
            done = stranger.run(*command)
            assert done.returncode == 1
            assert done.stderr == (
                f"firstlight: the API at {record.api_url} needs a key: "
                "give one with --key or FIRSTLIGHT_API_KEY\n"
            )
        refused = stranger.run("ps", "--key", "guessed")
        assert "refuses this key" in refused.stderr
        answer = stranger.run("chat", "tiny", "Hello", "--max-tokens", "2", "--key", "key-two")
        assert answer.returncode == 0, answer.stderr
        # Its keys are shown to no API that is named: it may be anybody's.
        assert given.run("ps", "--api", record.api_url).returncode == 1
        assert stranger.run("down", timeout_s=90).stdout == "stopped\n"
    assert not is_listening(record.api_url)


def api_url(installation: Installation) -> str:
    return f"http://127.0.0.1:{installation.env['FIRSTLIGHT_API_PORT']}"


def is_listening(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


def listed(installation: Installation, command: str) -> list[dict[str, object]]:
    found = installation.json(command)
    assert isinstance(found, list)
    return found

"""Ctrl-C, typed on a terminal: in the middle of an answer, and into `firstlight up` while one streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from firstlight.launcher.process_marks import is_running
from firstlight.launcher.run_file import read_run
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from tests.integration.installation import Installation, processes_of, until
from tests.integration.terminals import CTRL_C, CTRL_D, Terminal
from tests.platform_fixtures import tiny_source

MODEL = "endless"
# Greedy, this model never comes to an end; at a millisecond a token that is longer than any test.
TOKENS = 30_000
ENDLESSLY = ("--max-tokens", str(TOKENS), "--temperature", "0")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("interrupted") / "state")
    made.env["FIRSTLIGHT_HOST_IDS"] = "host-a"
    yield made
    made.run("down", timeout_s=90)


@contextmanager
def terminal(installation: Installation, *arguments: str) -> Iterator[Terminal]:
    opened = Terminal(*arguments, env=installation.env)
    try:
        yield opened
    finally:
        opened.close()


def running_requests(installation: Installation) -> int:
    """What the engine itself says that it works on."""
    (instance,) = (row for row in rows(installation, "ps") if row["state"] == "ready")

    async def ask() -> int:
        async with Channels() as channels:
            return (await InferenceClient(channels, str(instance["endpoint"])).status()).running

    return asyncio.run(ask())


def rows(installation: Installation, command: str) -> list[dict[str, object]]:
    found = installation.json(command)
    assert isinstance(found, list)
    return found


def answer_of(shown: bytes) -> bytes:
    """What came after the last line that waited for the model."""
    return shown.rpartition(b"waiting for")[2].partition(b"\x1b[2K")[2]


def this_turn(shown: bytes) -> bytes:
    return shown.rpartition(b"(interrupted)")[2]


@pytest.mark.slow
def test_ctrl_c_ends_an_answer_and_then_everything(installation: Installation) -> None:
    with terminal(installation, "up") as up:
        up.until(lambda shown: b"Ctrl-C stops everything" in shown)
        # One and the same source, should this be run again: a name is deployed from one place.
        source = installation.state_dir.parent / "endless"
        if not source.exists():
            tiny_source(source, context=TOKENS + 1000)
        assert installation.run("deploy", MODEL, str(source), "--wait").returncode == 0

        with terminal(installation, "chat", MODEL, "Go on", *ENDLESSLY) as chat:
            chat.until(lambda shown: len(answer_of(shown)) > 50)
            assert running_requests(installation) == 1
            chat.press(CTRL_C)
            assert chat.end(within_s=10) == 130
            assert chat.is_as_before()
            assert chat.shown.endswith(b"\n")
            assert b"Traceback" not in chat.shown
        # The engine gives the slot back at its next token, not when all of them are made.
        until(lambda: running_requests(installation) == 0, within_s=10)

        with terminal(installation, "chat", MODEL, *ENDLESSLY) as talk:
            for turn in (1, 2):
                talk.until(lambda shown: b">" in this_turn(shown))
                talk.press(b"Go on\r")
                talk.until(lambda shown: len(answer_of(this_turn(shown))) > 50)
                talk.press(CTRL_C)
                talk.until(lambda shown, turn=turn: shown.count(b"(interrupted)") == turn)  # type: ignore[misc]
            talk.press(CTRL_D)
            assert talk.end(within_s=10) == 0
            assert talk.is_as_before()

        with terminal(installation, "chat", MODEL, "Go on", *ENDLESSLY) as cut:
            cut.until(lambda shown: len(answer_of(shown)) > 50)
            everything = processes_of(installation.record())
            pressed_s = time.monotonic()
            up.press(CTRL_C)
            assert up.end(within_s=60) == 0
            assert up.is_as_before()
            took_s = time.monotonic() - pressed_s
            assert cut.end(within_s=10) == 1
            # The server's last words, or the client's own when the connection was gone before they were out.
            endings = (b"stopped before this answer was done", b"ended before the answer did")
            assert any(words in cut.shown for words in endings), cut.shown
    assert [process for process in everything if is_running(process)] == []
    assert read_run(installation.state_dir) is None
    assert b"was killed" not in up.shown, up.shown
    print(f"stopped in {took_s:.1f} s")


@pytest.mark.slow
def test_a_closed_window_stops_up_too(installation: Installation) -> None:
    window = Terminal("up", env=installation.env)
    try:
        until(lambda: "api" in installation.record().processes, within_s=60)
        everything = processes_of(installation.record())
    finally:
        # It cannot say any more that it stops.
        window.close()
    assert [process for process in everything if is_running(process)] == []
    assert read_run(installation.state_dir) is None


@pytest.mark.slow
def test_the_next_up_has_its_data(installation: Installation) -> None:
    with installation.up():
        assert [model["name"] for model in rows(installation, "models")] == [MODEL]
        # The bytes have stayed on the host's SSD: nothing is fetched again.
        done = installation.run("chat", MODEL, "Hello", "--max-tokens", "2")
        assert done.returncode == 0, done.stderr
        until(lambda: rows(installation, "starts")[0]["actual"] is not None)
        assert rows(installation, "starts")[0]["tier"] == "ssd"

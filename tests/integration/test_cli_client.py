"""The command line against an HTTP server that says exactly what each test needs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from firstlight.cli.chat_stream import Finished, Piece, Waiting, stream_chat
from firstlight.cli.client import ApiClient
from firstlight.domain.errors import ApiUnreachable, FirstlightError, StartTimeout, UnknownModel

COMMANDS = ("up", "down", "status", "deploy", "scale", "delete", "models", "chat", "ps", "hosts", "starts")
MESSAGES = [{"role": "user", "content": "Hello"}]


@contextmanager
def serving(status: int, content: bytes, content_type: str = "application/json") -> Iterator[str]:
    """A server that gives this one answer to everything; its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def events(*lines: str) -> bytes:
    return "".join(f"{line}\n\n" for line in lines).encode()


def chunk(text: str | None = None, *, finish: str | None = None, tokens: int | None = None) -> str:
    choices = [] if tokens else [{"delta": {"content": text} if text else {}, "finish_reason": finish}]
    usage = {"completion_tokens": tokens} if tokens else None
    return "data: " + json.dumps({"choices": choices, "usage": usage})


def firstlight(*arguments: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firstlight.cli", *arguments],
        env={"FIRSTLIGHT_STATE_DIR": str(state_dir), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_stream_gives_waits_pieces_and_an_end() -> None:
    answer = events(
        ": loading",
        chunk(),
        chunk("Par"),
        chunk("is"),
        chunk(finish="stop"),
        chunk(tokens=2),
        "data: [DONE]",
    )
    with serving(200, answer, "text/event-stream") as url, ApiClient(url) as client:
        got = list(stream_chat(client, "m", MESSAGES, {}))
    assert got == [Waiting("loading"), Piece("Par"), Piece("is"), Finished("stop", 2)]


def test_an_error_in_the_stream_is_raised_as_what_it_is() -> None:
    error = {"error": {"message": "too late", "code": "start_timeout", "type": "x", "param": None}}
    answer = events(chunk("Par"), "data: " + json.dumps(error))
    with (
        serving(200, answer, "text/event-stream") as url,
        ApiClient(url) as client,
        pytest.raises(StartTimeout, match="too late"),
    ):
        list(stream_chat(client, "m", MESSAGES, {}))


def test_a_stream_without_an_end_is_never_taken_for_a_whole_answer() -> None:
    with (
        serving(200, events(chunk("Par")), "text/event-stream") as url,
        ApiClient(url) as client,
        pytest.raises(FirstlightError, match="cut off"),
    ):
        list(stream_chat(client, "m", MESSAGES, {}))


def test_an_error_answer_becomes_the_error_of_its_code() -> None:
    body = json.dumps({"error": {"message": "no model 'x'", "code": "model_not_found"}}).encode()
    with (
        serving(404, body) as url,
        ApiClient(url) as client,
        pytest.raises(UnknownModel, match="no model 'x'"),
    ):
        client.get("/admin/v1/models/x")


def test_an_answer_that_is_no_api_is_told_by_its_status() -> None:
    with (
        serving(502, b"<html>") as url,
        ApiClient(url) as client,
        pytest.raises(FirstlightError, match="502"),
    ):
        client.get("/admin/v1/models")


def test_nobody_there_is_one_sentence_with_the_next_step(tmp_path: Path) -> None:
    with serving(200, b"{}") as url:
        pass
    with ApiClient(url) as client, pytest.raises(ApiUnreachable, match="firstlight up"):
        client.get("/admin/v1/models")
    done = firstlight("ps", "--api", url, state_dir=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"firstlight: no API answers at {url}: start one with `firstlight up`, " + (
        "or name another with --api\n"
    )


def test_ps_says_how_far_a_start_is(tmp_path: Path) -> None:
    told = {"phase": "load", "bytes_done": 310_000_000, "bytes_total": 538_000_000}
    row = {"model": "tiny", "host_id": "host-a", "gpu_indices": [0], "created_at_unix_s": 0.0}
    rows = [
        {**row, "instance_id": "one", "state": "starting", "progress": told},
        # From a server of an earlier release.
        {**row, "instance_id": "two", "state": "ready"},
    ]
    with serving(200, json.dumps({"instances": rows}).encode()) as url:
        shown = firstlight("ps", "--api", url, state_dir=tmp_path).stdout
    assert "starting load 310 MB of 538 MB" in shown


@pytest.mark.parametrize("arguments", [["deploy"], ["ps", "--nonsense"], ["scale", "m"], ["nonsense"]])
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    assert firstlight(*arguments, state_dir=tmp_path).returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    done = firstlight(command, "--help", state_dir=tmp_path)
    assert done.returncode == 0
    assert f"firstlight {command}" in done.stdout.partition("Example")[2]


def test_a_wrong_setting_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "firstlight.cli", "up"],
        env={"FIRSTLIGHT_STATE_DIR": str(tmp_path), "FIRSTLIGHT_API_PORT": "many", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("firstlight: FIRSTLIGHT_API_PORT: ")
    assert "Traceback" not in done.stderr


def test_logs_show_the_end_of_a_role_and_refuse_an_unknown_one(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "api.log").write_text("one\ntwo\nthree\n")
    assert firstlight("logs", "api", "-n", "2", state_dir=tmp_path).stdout == "two\nthree\n"
    as_json = firstlight("logs", "api", "-n", "1", "--json", state_dir=tmp_path).stdout
    assert json.loads(as_json) == {"role": "api", "line": "three"}
    done = firstlight("logs", "nobody", state_dir=tmp_path)
    assert done.returncode == 1
    assert "role 'nobody' has no log" in done.stderr

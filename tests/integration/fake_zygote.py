"""A zygote without torch: speaks the engines' protocol, and forks engines that only pretend to bind.

What an attach does is in the checkpoint's name: `fail@…` is refused, `die@…` ends the engine in the midst of
it, `slow@…` never answers. Every engine writes what it was asked to do into FAKE_ENGINE_LOG.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from typing import Any

SOCKET = sys.argv[sys.argv.index("--socket") + 1]
SUPERVISOR = int(sys.argv[sys.argv.index("--supervisor-pid") + 1])


def end_with_supervisor() -> None:
    """As the real ones do: watch the supervisor's pidfd."""

    def watch() -> None:
        select.select([os.pidfd_open(SUPERVISOR)], [], [])
        os._exit(4)

    threading.Thread(target=watch, daemon=True).start()


def connect(hello: dict[str, object]) -> tuple[socket.socket, Any]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(SOCKET)
    say(connection, hello)
    return connection, connection.makefile()


def say(connection: socket.socket, message: dict[str, object]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def note(line: str) -> None:
    if (path := os.environ.get("FAKE_ENGINE_LOG")) is not None:
        with open(path, "a") as file:
            file.write(line + "\n")


def engine() -> None:
    end_with_supervisor()
    connection, lines = connect({"hello": "engine", "pid": os.getpid()})
    endpoint = f"127.0.0.1:{os.getpid() % 60000 + 1}"
    say(connection, {"event": "spare", "endpoint": endpoint})
    for line in lines:
        request = json.loads(line)
        arguments = request["arguments"]
        note(f"{request['call']} {arguments.get('checkpoint_id', '')}".strip())
        if request["call"] == "attach":
            attach(connection, request["id"], arguments, endpoint)
        elif request["call"] == "prepare":
            say(connection, {"id": request["id"], "result": {"skeleton_s": 0.01}})
        else:
            say(connection, {"id": request["id"], "result": {"aborted": 0}})
            os._exit(0)


def attach(connection: socket.socket, number: int, arguments: dict[str, Any], endpoint: str) -> None:
    kind = arguments["checkpoint_id"].partition("@")[0]
    if kind == "die":
        os._exit(9)
    if kind == "slow":
        return
    if kind == "fail":
        say(connection, {"id": number, "error": {"code": "attach_failed", "message": "shapes differ"}})
        os._exit(1)
    times = {"map_s": 0.001, "skeleton_s": 0.0, "bind_s": 0.002, "total_s": 0.003}
    sizes = {"context_length": 128, "parameter_bytes": 4096}
    say(connection, {"id": number, "result": {"endpoint": endpoint, **times, **sizes}})


def zygote() -> None:
    end_with_supervisor()
    connection, lines = connect({"hello": "zygote", "pid": os.getpid()})
    lock = threading.Lock()

    def reap(pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        with lock:
            say(connection, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    for line in lines:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            connection.close()
            engine()
            os._exit(0)
        with lock:
            say(connection, {"id": request["id"], "forked": pid})
        threading.Thread(target=reap, args=(pid,), daemon=True).start()


signal.signal(signal.SIGINT, signal.SIG_IGN)
zygote()

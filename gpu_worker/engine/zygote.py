"""`python -m gpu_worker.engine.zygote --socket PATH --supervisor-pid P`: imports once, forks on demand.

Promises that it has one thread and no GPU context whenever it forks: a child would lose or share them. The
protocol is told in `process`. It ends when the supervisor does; its engines then end by themselves.

Whoever connects to the socket that `--planners-fd` listens at gets a planner of conversions, which needs the
same imports: see `gpu_worker.convert.plan_server`. It ends with its connection, and with the zygote.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from transformers.utils import logging as transformers_logging

from firstlight.telemetry import tracing
from firstlight.telemetry.log_lines import log_to_stderr
from gpu_worker.engine.architectures import MODEL_TYPES
from gpu_worker.engine.control import EngineConfig
from gpu_worker.engine.process import serve
from gpu_worker.engine.warmup import warm

log = logging.getLogger("engine.zygote")

PR_SET_PDEATHSIG = 1


class Zygote:
    """The control connection, and the children that have not been reported yet."""

    def __init__(self, *, socket_path: str, supervisor_fd: int, planners: socket.socket | None) -> None:
        self._socket_path = socket_path
        self._supervisor_fd = supervisor_fd
        self._planners = planners
        self._planner_pids: set[int] = set()
        self._received = b""
        # A byte arrives here for every signal: SIGCHLD wakes the same select as everything else.
        self._wakeup_read, self._wakeup_write = socket.socketpair()
        self._wakeup_read.setblocking(False)
        self._wakeup_write.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.connect(socket_path)
        self._say({"hello": "zygote", "pid": os.getpid()})

    def run(self) -> int:
        """Fork on demand until the supervisor goes."""
        while True:
            waited = [self._control.fileno(), self._wakeup_read.fileno(), self._supervisor_fd]
            if self._planners is not None:
                waited.append(self._planners.fileno())
            readable, _, _ = select.select(waited, [], [])
            if self._supervisor_fd in readable:
                return 0
            if self._wakeup_read.fileno() in readable:
                self._wakeup_read.recv(4096)
                self._report_exits()
            if self._control.fileno() in readable and not self._read_control():
                return 0
            if self._planners is not None and self._planners.fileno() in readable:
                self._fork_planner(self._planners)

    def _read_control(self) -> bool:
        data = self._control.recv(1 << 16)
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._fork(json.loads(line))
        return bool(data)

    # Any: decoded JSON messages.
    def _fork(self, request: dict[str, Any]) -> None:
        config = EngineConfig(**request["fork"])
        pid = self._forked(lambda: self._be_engine(config))
        self._say({"id": request["id"], "forked": pid})

    def _fork_planner(self, planners: socket.socket) -> None:
        try:
            asked, _ = planners.accept()
        except OSError:
            # Who asked has gone again.
            return
        parent = os.getpid()
        with asked:
            self._planner_pids.add(self._forked(lambda: _be_planner(asked, parent)))

    def _forked(self, live: Callable[[], int]) -> int:
        """The pid of a child that lives what is given, and ends with the status that comes of it."""
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads at the fork"
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become(live)
        return pid

    def _become(self, live: Callable[[], int]) -> NoReturn:
        """In the child: let go of what is the zygote's, live, and never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._control, self._wakeup_read, self._wakeup_write, self._planners):
                if ours is not None:
                    ours.close()
            status = live()
        except Exception:  # outermost: whatever it was, this process must not run the zygote's code
            log.exception("a child of the zygote ended")
        finally:
            tracing.stop()
            sys.stdout.flush()
            sys.stderr.flush()
            # Without the interpreter's farewell: gRPC's threads can hold it up.
            os._exit(status)

    def _be_engine(self, config: EngineConfig) -> int:
        # Not before: it has a thread.
        tracing.start("engine")
        return serve(config, control_path=self._socket_path, supervisor_fd=self._supervisor_fd)

    def _report_exits(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._planner_pids:
                self._planner_pids.remove(pid)
                continue
            self._say({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")


def _be_planner(asked: socket.socket, parent: int) -> int:
    from gpu_worker.convert import plan_server

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The zygote may have died before the line above: then nothing would ever kill this process.
    return plan_server.converse(asked) if os.getppid() == parent else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.engine.zygote")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--supervisor-pid", type=int, required=True)
    parser.add_argument("--host-id", default="")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--planners-fd", type=int, help="inherited; listens at a Unix socket")
    parser.add_argument("--model-type", action="append", default=[], choices=sorted(MODEL_TYPES))
    arguments = parser.parse_args()
    log_to_stderr(
        log_format=arguments.log_format,
        level=logging.INFO,
        text="%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s",
        of={"role": "engine", "host_id": arguments.host_id},
    )
    tracing.prepare()
    # Ctrl-C reaches the whole terminal; only the supervisor decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor_fd = os.pidfd_open(arguments.supervisor_pid)
    begun_s = time.monotonic()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    model_types = sorted({*MODEL_TYPES, *arguments.model_type})
    warm(model_types)
    # Collected objects would touch, and so copy, pages that children could go on sharing.
    gc.collect()
    gc.freeze()
    log.info("warm for %d architectures in %.2f s", len(model_types), time.monotonic() - begun_s)
    planners = socket.socket(fileno=arguments.planners_fd) if arguments.planners_fd is not None else None
    return Zygote(socket_path=arguments.socket, supervisor_fd=supervisor_fd, planners=planners).run()


if __name__ == "__main__":
    sys.exit(main())

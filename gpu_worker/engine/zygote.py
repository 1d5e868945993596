"""`python -m gpu_worker.engine.zygote --socket PATH --supervisor-pid P`: imports once, forks on demand.

Promises that it has one thread and no GPU context whenever it forks: a child would lose or share them. The
protocol is told in `process`. It ends when the supervisor does; its engines then end by themselves.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import time
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


class Zygote:
    """The control connection, and the children that have not been reported yet."""

    def __init__(self, *, socket_path: str, supervisor_fd: int) -> None:
        self._socket_path = socket_path
        self._supervisor_fd = supervisor_fd
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
            readable, _, _ = select.select(waited, [], [])
            if self._supervisor_fd in readable:
                return 0
            if self._wakeup_read.fileno() in readable:
                self._wakeup_read.recv(4096)
                self._report_exits()
            if self._control.fileno() in readable and not self._read_control():
                return 0

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
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads at the fork"
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become(config)
        self._say({"id": request["id"], "forked": pid})

    def _become(self, config: EngineConfig) -> NoReturn:
        """In the child: let go of what is the zygote's, be an engine, and never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._control, self._wakeup_read, self._wakeup_write):
                ours.close()
            # Not before: it has a thread.
            tracing.start("engine")
            status = serve(config, control_path=self._socket_path, supervisor_fd=self._supervisor_fd)
        except Exception:  # outermost: whatever it was, this process must not run the zygote's code
            log.exception("engine ended")
        finally:
            tracing.stop()
            sys.stdout.flush()
            sys.stderr.flush()
            # Without the interpreter's farewell: gRPC's threads can hold it up.
            os._exit(status)

    def _report_exits(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._say({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.engine.zygote")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--supervisor-pid", type=int, required=True)
    parser.add_argument("--host-id", default="")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
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
    return Zygote(socket_path=arguments.socket, supervisor_fd=supervisor_fd).run()


if __name__ == "__main__":
    sys.exit(main())

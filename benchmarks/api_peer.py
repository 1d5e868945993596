"""`transformers serve` as a child process: the peer that the API is measured beside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

from benchmarks.platform import PlatformFailed

READY_S = 120.0


class Peer:
    """Serves the model in `exported` at `url`. A context manager.

    As its users start it on such a machine: every core, the weights' own type; `is_batching` with its
    continuous batching, else one answer after the other.
    """

    def __init__(self, exported: Path, *, is_batching: bool) -> None:
        self.name = "transformers serve" + (" --continuous-batching" if is_batching else "")
        self.model = str(exported)
        self._is_batching = is_batching
        self._log_file = exported.parent / f"{self.name.replace(' ', '-')}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Peer:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        batching = ["--continuous-batching", "--cb-max-memory-percent", "0.2"] if self._is_batching else []
        command = ["-m", "transformers.cli.transformers", "serve", self.model, "--port", str(port), *batching]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--host", "127.0.0.1", "--device", "cpu", "--log-level", "error"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def log_end(self) -> str:
        return self._log_file.read_text(errors="replace")[-2000:]

    def _wait(self) -> None:
        end_s = time.monotonic() + READY_S
        assert self._process is not None
        while True:
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise PlatformFailed(f"{self.name} did not come up\n{self.log_end}")
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A whole Firstlight of one's own: `firstlight up` in a scratch directory, on ports nobody else has.

Used by benchmarks and by the tests of the whole; everything is reached as a user reaches it, and the
store directly for what no user may do (drop a checkpoint from DRAM).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from firstlight.launcher.run_file import RunRecord, read_run

READY_S = 120.0
STOP_S = 40.0


class PlatformFailed(Exception):
    """The platform did not come up, or a condition did not become true in time."""


class Platform:
    """`firstlight up` as a child process. Use as a context manager."""

    def __init__(self, state_dir: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.state_dir = state_dir
        self.log_file = state_dir.parent / f"{state_dir.name}-up.log"
        self._env = {
            **os.environ,
            "FIRSTLIGHT_STATE_DIR": str(state_dir),
            "FIRSTLIGHT_API_PORT": "0",
            "FIRSTLIGHT_TEMPORAL_PORT": "0",
            "FIRSTLIGHT_TEMPORAL_UI_PORT": "0",
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._record: RunRecord | None = None
        self.http = httpx.Client(timeout=300.0, trust_env=False)

    def __enter__(self) -> Platform:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.http.close()

    def start(self) -> None:
        """Start and wait until every role answers. Raises: PlatformFailed with the end of the log."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "firstlight.cli", "up"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(self._is_ready, what="the platform to be ready", deadline_s=READY_S)

    def stop(self) -> int | None:
        """Ctrl-C, and what a user would do if that did not help. Returns the exit code."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise PlatformFailed(f"the platform did not stop in {STOP_S:.0f} s\n{self.log_end()}") from None
        finally:
            self._process = None

    @property
    def record(self) -> RunRecord:
        record = read_run(self.state_dir)
        if record is None:
            raise PlatformFailed(f"no run file in {self.state_dir}")
        return record

    @property
    def api_url(self) -> str:
        return self.record.api_url

    @property
    def launcher_pid(self) -> int:
        assert self._process is not None, "the platform runs"
        return self._process.pid

    # Any: a JSON answer.
    def get(self, path: str) -> Any:
        response = self.http.get(self.api_url + path)
        response.raise_for_status()
        return response.json()

    # Any: JSON in, JSON out.
    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = self.http.post(self.api_url + path, json=body or {})
        if response.is_error:
            raise PlatformFailed(f"POST {path}: {response.status_code} {response.text}")
        return response.json()

    def wait_for(self, condition: Callable[[], bool], *, what: str, deadline_s: float) -> None:
        """Wait until `condition` holds. Raises: PlatformFailed."""
        end_s = time.monotonic() + deadline_s
        while not condition():
            if self._process is not None and self._process.poll() is not None:
                raise PlatformFailed(f"the platform ended while waiting for {what}\n{self.log_end()}")
            if time.monotonic() > end_s:
                raise PlatformFailed(f"waited {deadline_s:.0f} s for {what}\n{self.log_end()}")
            time.sleep(0.02)

    def log_end(self) -> str:
        """The last lines of the launcher's log and of every role's."""
        parts = []
        for file in [self.log_file, *sorted(self.state_dir.glob("**/logs/*.log"))]:
            if file.exists():
                lines = file.read_text(errors="replace").splitlines()[-15:]
                parts.append(f"--- {file.name}\n" + "\n".join(lines))
        return "\n".join(parts)

    def _is_ready(self) -> bool:
        record = read_run(self.state_dir)
        # The record of an earlier run that was killed is not ours.
        return record is not None and record.is_ready and record.launcher.pid == self.launcher_pid

"""One Firstlight installation of a test's own: a state directory, free ports, and its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.launcher.machine_checks import free_port
from firstlight.launcher.process_marks import ProcessMark, mark
from firstlight.launcher.run_file import RunRecord, read_run

READY_WITHIN_S = 120.0


class Installation:
    """One state directory with ports of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        ports = {f"FIRSTLIGHT_{name}": str(free_port("127.0.0.1")) for name in PORTS}
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")},
            **ports,
            "FIRSTLIGHT_STATE_DIR": str(state_dir),
            "FIRSTLIGHT_DRAM_CAPACITY_BYTES": str(64 << 20),
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "firstlight.cli", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def json(self, *arguments: str) -> object:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[bytes]]:
        """A run that is ready; stopped at the end if the body has not stopped it."""
        with (self.state_dir.parent / "up.txt").open("ab") as output:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "firstlight.cli", "up"], env=self.env, stdout=output, stderr=output
            )
        try:
            until(lambda: launcher.poll() is not None or self.is_ready(launcher.pid), within_s=READY_WITHIN_S)
            assert launcher.poll() is None, self.output()
            yield launcher
        finally:
            if launcher.poll() is None:
                launcher.terminate()
            launcher.wait(60)

    def is_ready(self, launcher_pid: int) -> bool:
        record = self.record()
        return record.launcher.pid == launcher_pid and record.is_ready

    def record(self) -> RunRecord:
        return read_run(self.state_dir) or RunRecord(launcher=ProcessMark(0, ""), api_url="")

    def output(self) -> str:
        return (self.state_dir.parent / "up.txt").read_text()


PORTS = ("API_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT")


def until(is_true: Callable[[], bool], *, within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        time.sleep(0.05)


def processes_of(record: RunRecord) -> list[ProcessMark]:
    """Every process of the run and all below them."""
    found, todo = [], [record.launcher, *record.processes.values()]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += [child for child in map(mark, _children(process.pid)) if child is not None]
    return list(dict.fromkeys(found))


def _children(pid: int) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            pids.append(int(stat.parent.name))
    return pids

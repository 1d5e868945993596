"""Stopping a run from outside, and clearing up behind one that was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from firstlight.domain.errors import LaunchError
from firstlight.launcher.process_marks import end_processes, is_running
from firstlight.launcher.run_file import RunRecord, read_run, run_path
from firstlight.settings import Settings

STOPPED_WITHIN_S = 60.0


def stop_run(settings: Settings) -> str:
    """Ask the launcher to stop and wait for it; end leftovers of a killed one. Returns what was done."""
    record = read_run(settings.state_dir)
    if record is not None and is_running(record.launcher):
        _stop_launcher(record, settings.state_dir)
        return "stopped"
    ended = end_leftovers(record) if record is not None else []
    ended += _stop_postgres(settings.state_dir)
    run_path(settings.state_dir).unlink(missing_ok=True)
    return f"stopped what a killed run had left: {', '.join(ended)}" if ended else "nothing runs here"


def end_leftovers(record: RunRecord) -> list[str]:
    """End processes of a launcher that is gone; returns their roles."""
    found = end_processes(record.processes.values())
    return [role for role, process in record.processes.items() if process in found]


def _stop_postgres(state_dir: Path) -> list[str]:
    """The embedded Postgres is a daemon of its own, and outlives a launcher that is killed."""
    from firstlight.launcher.embedded.postgres import EmbeddedPostgres

    server = EmbeddedPostgres(state_dir)
    if server.pid is None:
        return []
    server.stop()
    return ["postgres"]


def _stop_launcher(record: RunRecord, state_dir: Path) -> None:
    os.kill(record.launcher.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + STOPPED_WITHIN_S
    while is_running(record.launcher):
        if time.monotonic() > deadline_s:
            raise LaunchError(
                f"the run in {state_dir} (pid {record.launcher.pid}) did not stop within "
                f"{STOPPED_WITHIN_S:.0f} s; look at it with `firstlight logs`"
            )
        time.sleep(0.05)

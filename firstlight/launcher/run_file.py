"""What a running `firstlight up` says about itself in `<state_dir>/run.json`, and the lock beside it.

The lock is the truth about whether one runs: the kernel drops it with the process. The file says where to
reach it and, after a kill, which processes are its leftovers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firstlight.domain.errors import AlreadyRunning
from firstlight.launcher.process_marks import ProcessMark, mark


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run. `processes` maps role → process; `addresses` is what clients need."""

    launcher: ProcessMark
    api_url: str
    temporal_address: str = ""
    temporal_ui_url: str = ""
    database_url: str = ""
    is_ready: bool = False
    processes: Mapping[str, ProcessMark] = field(default_factory=dict)

    def write(self, state_dir: Path) -> None:
        """Replace the file in one step, readable by its owner only."""
        path = run_path(state_dir)
        fresh = path.with_name(path.name + ".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
        os.replace(fresh, path)


def run_path(state_dir: Path) -> Path:
    return state_dir / "run.json"


def read_run(state_dir: Path) -> RunRecord | None:
    """The last run's record; None when there is none or it is not readable."""
    try:
        values = json.loads(run_path(state_dir).read_text())
        return _record(values)
    except (OSError, ValueError, TypeError, KeyError):
        return None


# Any: the values of a JSON object; a wrong one ends in TypeError or KeyError.
def _record(values: dict[str, Any]) -> RunRecord:
    processes = {name: ProcessMark(**process) for name, process in values.pop("processes").items()}
    return RunRecord(launcher=ProcessMark(**values.pop("launcher")), processes=processes, **values)


def own_mark() -> ProcessMark:
    own = mark(os.getpid())
    assert own is not None, "this very process runs"
    return own


@contextlib.contextmanager
def hold_lock(state_dir: Path) -> Iterator[None]:
    """Be the only launcher of `state_dir`, which must exist. Raises: AlreadyRunning."""
    with (state_dir / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _already_running(state_dir) from None
        yield


def _already_running(state_dir: Path) -> AlreadyRunning:
    record = read_run(state_dir)
    where = f" (pid {record.launcher.pid}, {record.api_url})" if record else ""
    return AlreadyRunning(
        f"Firstlight already runs in {state_dir}{where}: use it, stop it with `firstlight down`, "
        "or set FIRSTLIGHT_STATE_DIR to another directory"
    )

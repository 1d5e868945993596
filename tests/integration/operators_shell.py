"""The command line as an operator's shell runs it, on a cluster that its environment names."""

from __future__ import annotations

import os
import subprocess
import sys


def firstlight(
    *arguments: str, temporal: str, database_url: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")}
    environment["FIRSTLIGHT_TEMPORAL_ADDRESS"] = temporal
    if database_url is not None:
        environment["FIRSTLIGHT_DATABASE_URL"] = database_url
    return subprocess.run(
        [sys.executable, "-m", "firstlight.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )

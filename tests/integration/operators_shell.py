"""The command line as an operator's shell runs it, on a cluster that its environment names."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any


def environment(*, temporal: str, database_url: str | None = None, **settings: str) -> dict[str, str]:
    """This process's own, with no other setting of ours than these."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")}
    found["FIRSTLIGHT_TEMPORAL_ADDRESS"] = temporal
    if database_url is not None:
        found["FIRSTLIGHT_DATABASE_URL"] = database_url
    return found | {f"FIRSTLIGHT_{name.upper()}": value for name, value in settings.items()}


def firstlight(
    *arguments: str, temporal: str, database_url: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firstlight.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment(temporal=temporal, database_url=database_url, **settings),
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


@dataclass(frozen=True)
class Operator:
    """Works on one cluster by `firstlight workflows`, and on nothing else."""

    temporal: str
    database_url: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    async def runs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            firstlight,
            "workflows",
            *arguments,
            temporal=self.temporal,
            database_url=self.database_url,
            **self.settings,
        )

    # Any: the JSON of the command.
    async def is_told(self, *arguments: str, code: int = 0) -> Any:
        """What `--json` prints, of a command that ends with this code."""
        done = await self.runs(*arguments, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    async def finds(self, *arguments: str) -> list[str]:
        """Ids of what `list --failed` shows."""
        return [row["workflow_id"] for row in await self.is_told("list", "--failed", *arguments)]

    async def finds_soon(self, *wanted: str, by: tuple[str, ...], within_s: float = 20.0) -> None:
        """Visibility lags a little behind."""
        deadline_s = asyncio.get_running_loop().time() + within_s
        while set(found := await self.finds(*by)) != set(wanted):
            assert asyncio.get_running_loop().time() < deadline_s, found

"""Options by which workflows are chosen, shared by the commands that list and those that act."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def age(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h`, `1d`."""
    found = _AGE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no age: write 90s, 30m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


Since = Annotated[
    str | None, typer.Option("--since", metavar="AGE", help="Ended no longer ago than 90s, 30m, 2h or 1d.")
]
Model = Annotated[str | None, typer.Option("--model", help="Only this model's.")]
Host = Annotated[str | None, typer.Option("--host", help="Only those on this host.")]
Type = Annotated[
    str | None,
    typer.Option("--type", metavar="TYPE", help="ColdStart, ModelDownload, LiveMigration, HostDrain …"),
]
Query = Annotated[
    str | None,
    typer.Option(
        "--query", metavar="QUERY", help="More of Temporal's own, like 'FirstlightPhase = \"done\"'."
    ),
]
WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="Workflow id, as `list` shows it.")]
Limit = Annotated[int, typer.Option("-n", min=1, max=1000, help="At most so many.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before touching more than one.")]


def chosen(
    *,
    is_failed: bool,
    since: str | None,
    model: str | None,
    host: str | None,
    workflow_type: str | None,
    query: str | None,
) -> str:
    from firstlight.recovery.found import query_of

    return query_of(
        is_failed=is_failed,
        since_unix_s=time.time() - age(since) if since else None,
        model=model,
        host=host,
        workflow_type=workflow_type,
        more=query,
    )

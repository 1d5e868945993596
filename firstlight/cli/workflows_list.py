"""`firstlight workflows list`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, seconds, table
from firstlight.cli.workflows_cluster import Cluster, on_cluster
from firstlight.cli.workflows_options import Host, Limit, Model, Query, Since, Type, chosen
from firstlight.cli.workflows_reports import warn_of_more

if TYPE_CHECKING:
    from firstlight.recovery.found import FoundWorkflow, Search

STYLES = {"running": "yellow", "completed": "green", "failed": "red", "timed_out": "red", "terminated": "red"}


def list_workflows(
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed or were cut off.")] = False,
    since: Since = None,
    model: Model = None,
    host: Host = None,
    workflow_type: Type = None,
    query: Query = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List workflows, newest first.

    With --failed only those whose latest run failed, timed out or was terminated: one that was replayed to
    success is not among them. What -n leaves out is said on stderr.
    """
    from firstlight.recovery.found import search, search_latest

    wanted = chosen(
        is_failed=failed, since=since, model=model, host=host, workflow_type=workflow_type, query=query
    )

    async def look(cluster: Cluster) -> Search:
        if failed:
            return await search_latest(cluster.client, wanted, limit=limit)
        return await search(cluster.client, wanted, limit=limit)

    found = on_cluster(look)
    if as_json:
        print_json([dataclasses.asdict(row) for row in found.rows])
    elif found.rows:
        _print(found.rows)
    elif found.gave_up_after is None:
        console.print("no workflow has failed" if failed else "no workflow is like that")
    warn_of_more(found)


def _print(found: Sequence[FoundWorkflow]) -> None:
    shown = table("STATUS", "ENDED", "TYPE", "MODEL", "HOST", "ID")
    for row in found:
        ended = f"{seconds(time.time() - row.closed_at_unix_s)} ago" if row.closed_at_unix_s else "-"
        shown.add_row(
            Text(row.status.replace("_", " "), style=STYLES.get(row.status, "dim")),
            ended,
            row.workflow_type,
            row.model or "-",
            row.host or "-",
            row.workflow_id,
        )
    console.print(shown)

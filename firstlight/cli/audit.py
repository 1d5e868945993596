"""`firstlight audit`: who did what."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json, table
from firstlight.cli.workflows_options import age


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: firstlight audit --since 1d · firstlight audit --subject model/qwen --json"
    )(audit)


def audit(
    since: Annotated[
        str | None, typer.Option("--since", metavar="AGE", help="No older than 30m, 2h, 1d …")
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What it was done to: model/qwen.")] = None,
    actor: Annotated[
        str | None, typer.Option("--actor", help="Who did it: a key's id, cli/NAME@HOST.")
    ] = None,
    limit: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many, newest first.")] = 30,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show administrative acts, newest first: by the API, by `firstlight workflows`, and what hosts found."""
    from_unix_s = str(time.time() - age(since)) if since else None
    with ApiClient(api, key) as client:
        found = client.get(
            "/admin/v1/audit", subject=subject, actor=actor, since_unix_s=from_unix_s, limit=limit
        )["audit"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("nothing was done")
        return
    shown = table("WHEN (UTC)", "WHO", "WHAT", "TO", "DETAIL")
    for line in found:
        when = datetime.fromtimestamp(line["at_unix_s"], UTC)
        detail = json.dumps(line["detail"], ensure_ascii=False)
        shown.add_row(
            f"{when:%Y-%m-%d %H:%M:%S}",
            line["actor"],
            line["act"],
            line["subject"],
            Text(detail, style="dim"),
        )
    console.print(shown)

"""`firstlight starts`: what the last starts took, phase by phase, predicted beside actual."""

from __future__ import annotations

from typing import Annotated

import typer

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json
from firstlight.cli.timeline import print_timeline


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight starts · firstlight starts --model qwen -n 3")(starts)


def starts(
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option("-n", min=1, max=200, help="How many, newest first.")] = 5,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show the last starts as timelines: predicted and actual seconds of every phase."""
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/starts", model=model, limit=limit)["starts"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no model has been started yet")
    for start in found:
        print_timeline(start)

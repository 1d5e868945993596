"""`firstlight models`: what is deployed."""

from __future__ import annotations

import typer

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json, seconds, size, table


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: firstlight models --json")(models)


def models(api: ApiUrl = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the models that are deployed, running or not."""
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/models")["models"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no model is deployed; deploy one with [bold]firstlight deploy NAME SOURCE[/]")
        return
    shown = table("MODEL", "STATE", "SIZE", "GPUS", "INSTANCES", "KEEP-ALIVE", "SOURCE")
    for model in found:
        shown.add_row(
            model["name"],
            model["state"],
            size(model["size_bytes"]),
            str(model["gpu_count"]),
            f"{model['min_instances']}–{model['max_instances']}",
            seconds(model["keep_alive_s"]),
            model["source"],
        )
    console.print(shown)

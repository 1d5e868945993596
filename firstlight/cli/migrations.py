"""`firstlight migrate`, `migrations`, `drain`, `undrain`: running requests move between hosts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json, seconds, size, table

STYLES = {"completed": "green", "running": "yellow", "failed": "red", "cancelled": "dim"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight migrate i-1f2e --to host-b · firstlight migrate i-1f2e")(migrate)
    app.command(epilog="Examples: firstlight migrations · firstlight migrations --model qwen --json")(
        migrations
    )
    app.command(epilog="Example: firstlight drain host-a")(drain)
    app.command(epilog="Example: firstlight undrain host-a")(undrain)


def migrate(
    instance: Annotated[str, typer.Argument(help="Which instance; `firstlight ps` lists them.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="HOST", help="Where to; default: soonest.")
    ] = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Move an instance and its running requests to another host; their streams do not break."""
    with ApiClient(api, key) as client:
        begun = client.post(f"/admin/v1/instances/{quote(instance, safe='')}/migrate", {"to": to})
    if as_json:
        print_json(begun)
        return
    console.print(
        f"{begun['migration_id']}: {begun['model']} moves from {begun['source_host_id']} to "
        f"{begun['destination_host_id']}; follow it with [bold]firstlight migrations[/]"
    )


def migrations(
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option("-n", min=1, max=200, help="How many, newest first.")] = 10,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show the last migrations: how long each step took (and was foretold to take), and the longest pause."""
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/migrations", model=model, limit=limit)["migrations"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("nothing has moved yet; [bold]firstlight migrate INSTANCE --to HOST[/] moves one")
        return
    shown = table(
        "WHEN",
        "MODEL",
        "FROM → TO",
        "STATE",
        "START",
        "MOVE",
        "PAUSE",
        "REQUESTS",
        "ROUNDS",
        "TOKENS",
        "SENT",
    )
    for one in found:
        shown.add_row(*_row(one))
    console.print(shown)
    for one in found:
        if one["failure"]:
            console.print(f"[red]{one['migration_id']}[/]: {one['failure']}")


# Any: the JSON of one migration.
def _row(one: Mapping[str, Any]) -> tuple[str | Text, ...]:
    return (
        f"{seconds(time.time() - one['started_at_unix_s'])} ago",
        one["model"],
        f"{one['source_host_id']} → {one['destination_host_id']}",
        Text(one["state"], style=STYLES.get(one["state"], "")),
        _beside(one["start_s"], one["predicted_start_s"]),
        _beside(one["move_s"], one["predicted_move_s"]),
        f"{one['pause_s'] * 1000:.0f} ms",
        str(one["requests_moved"]),
        str(one["rounds"]),
        str(one["tokens_moved"]),
        size(one["bytes_moved"]),
    )


def _beside(actual_s: float, predicted_s: float | None) -> str:
    return seconds(actual_s) if predicted_s is None else f"{seconds(actual_s)} ({seconds(predicted_s)})"


def drain(
    host: Annotated[str, typer.Argument(help="Which host; `firstlight hosts` lists them.")],
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Take a host out of service: nothing new starts there, and all it runs moves elsewhere."""
    _set_drain(host, "drain", api, key, as_json)


def undrain(
    host: Annotated[str, typer.Argument(help="Which host.")],
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Put a drained host back into service."""
    _set_drain(host, "undrain", api, key, as_json)


def _set_drain(host: str, verb: str, api: str | None, key: str | None, as_json: bool) -> None:
    with ApiClient(api, key) as client:
        answer = client.post(f"/admin/v1/hosts/{quote(host, safe='')}/{verb}", {})
    if as_json:
        print_json(answer)
    elif verb == "drain":
        console.print(
            f"{host} is draining: {answer['live_instances']} instances move off it; "
            "[bold]firstlight migrations[/] shows them, [bold]firstlight undrain[/] calls it off"
        )
    else:
        console.print(f"{host} takes work again")

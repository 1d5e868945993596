"""`firstlight keys`: API keys, made, listed, revoked, and what they have used."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json, seconds, table
from firstlight.cli.workflows_options import age

app = typer.Typer(
    no_args_is_help=True,
    help="API keys: who may ask for what, how often, until when. The API keeps only their SHA-256.",
    epilog="\n\n".join(
        (
            "Examples:",
            "firstlight keys create --name frontend --per-minute 600 --concurrent 32 --expires 90d",
            "firstlight keys revoke key-1f2e",
        )
    ),
)
Name = Annotated[str, typer.Option("--name", help="Whose it is, for people.")]
Scope = Annotated[str, typer.Option("--scope", metavar="inference|admin", help="What it may do.")]
Expires = Annotated[
    str | None, typer.Option("--expires", metavar="AGE", help="Ends after 12h, 90d …; default: never.")
]
PerMinute = Annotated[
    int | None, typer.Option("--per-minute", min=1, help="Requests a minute, counted by each API process.")
]
Concurrent = Annotated[
    int | None, typer.Option("--concurrent", min=1, help="Requests at once, counted by each API process.")
]


@app.command(epilog="Example: firstlight keys create --name frontend --per-minute 600 --expires 90d")
def create(
    name: Name,
    scope: Scope = "inference",
    expires: Expires = None,
    per_minute: PerMinute = None,
    concurrent: Concurrent = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed once, on stdout alone, and never again."""
    wish = {
        "name": name,
        "scope": scope,
        "expires_in_s": age(expires) if expires else None,
        "requests_per_minute": per_minute,
        "max_concurrent": concurrent,
    }
    with ApiClient(api, key) as client:
        made = client.post("/admin/v1/keys", wish)
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"{made['key_id']} for {made['name']} ({made['scope']}); keep this, it is not shown again:", err=True
    )
    typer.echo(made["key"])


@app.command("list", epilog="Example: firstlight keys list")
def list_keys(api: ApiUrl = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """List all keys, newest first; those of FIRSTLIGHT_API_KEYS are not among them."""
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/keys")["keys"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no key has been made; [bold]firstlight keys create --name NAME[/] makes one")
        return
    shown = table("KEY", "SCOPE", "STATE", "A MINUTE", "AT ONCE", "MADE", "NAME")
    for one in found:
        shown.add_row(
            one["key_id"],
            one["scope"],
            _state(one),
            str(one["requests_per_minute"] or "-"),
            str(one["max_concurrent"] or "-"),
            f"{seconds(time.time() - one['created_at_unix_s'])} ago",
            Text(one["name"]),
        )
    console.print(shown)


@app.command(epilog="Example: firstlight keys revoke key-1f2e")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `list` shows it.")],
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """End a key: every API process refuses it within seconds. Answers under way go on."""
    with ApiClient(api, key) as client:
        ended = client.delete(f"/admin/v1/keys/{quote(key_id, safe='')}")
    if as_json:
        print_json(ended)
    else:
        console.print(f"{ended['key_id']} ({ended['name']}) is revoked")


@app.command(epilog="Examples: firstlight keys usage · firstlight keys usage --since 30d --json")
def usage(
    since: Annotated[str, typer.Option("--since", metavar="AGE", help="1h, 30d …, in whole hours.")] = "1d",
    key_id: Annotated[str | None, typer.Option("--id", metavar="KEY_ID", help="Only this key's.")] = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show what each key has used of each model."""
    from_unix_s = str(time.time() - age(since))
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/usage", since_unix_s=from_unix_s, key_id=key_id)["usage"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no key has been used")
        return
    shown = table("KEY", "MODEL", "REQUESTS", "REFUSED", "PROMPT TOKENS", "GENERATED")
    for one in found:
        figures = (one[name] for name in ("requests", "refused", "prompt_tokens", "completion_tokens"))
        shown.add_row(one["key_id"], one["model"], *(str(figure) for figure in figures))
    console.print(shown)


# Any: the JSON of one key.
def _state(one: Mapping[str, Any]) -> Text:
    now_unix_s = time.time()
    expires = one["expires_at_unix_s"]
    if one["revoked_at_unix_s"] is not None:
        return Text("revoked", style="red")
    if expires is not None and expires <= now_unix_s:
        return Text("expired", style="red")
    return Text("active" if expires is None else f"{seconds(expires - now_unix_s)} left", style="green")

"""`firstlight ps` and `firstlight hosts`: what runs, and on what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import bar, console, print_json, seconds, size, table

STATE_STYLES = {"ready": "green", "starting": "yellow", "draining": "yellow", "failed": "red", "lost": "red"}

# Of the instances that have ended, as many as the API tells at most.
ENDED = 1000
# Where a phase's own name says too little.
PHASE_WORDS = {"queue": "queued", "free": "making room", "control": "finishing"}


def register(app: typer.Typer) -> None:
    app.command("ps", epilog="Examples: firstlight ps · firstlight ps --all --json")(instances)
    app.command(epilog="Example: firstlight hosts")(hosts)


def instances(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help=f"The latest {ENDED} that have ended too.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List the instances that run."""
    with ApiClient(api, key) as client:
        ended = ENDED if everything else 0
        found = client.get("/admin/v1/instances", model=model, ended=ended)["instances"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("nothing runs; the next request for a model starts it")
        return
    shown = table("INSTANCE", "MODEL", "STATE", "HOST", "GPUS", "AGE")
    for one in found:
        shown.add_row(
            one["instance_id"],
            one["model"],
            Text.assemble(_state(one["state"]), _progress(one.get("progress"))),
            one["host_id"] or "-",
            ",".join(str(index) for index in one["gpu_indices"]) or "-",
            seconds(time.time() - one["created_at_unix_s"]),
        )
    console.print(shown)


def hosts(api: ApiUrl = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show every GPU host with its GPUs and how full its tiers are."""
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/hosts")["hosts"]
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no GPU host has joined; start one with [bold]firstlight serve gpu-host[/]")
        return
    for host in found:
        _print_host(host)


# Any: the JSON of one host.
def _print_host(host: Mapping[str, Any]) -> None:
    console.print(Text.assemble((host["host_id"], "bold"), "  ", _state(host["state"])))
    for gpu in host["gpus"]:
        holder = gpu.get("instance_id")
        name = f"gpu {gpu['gpu_index']}"
        what = f"{gpu['name'] or 'slot'}, {size(gpu['memory_bytes'])}"
        held_by = gpu.get("model") or holder or "free"
        console.print(f"  {name:6} {bar(1.0 if holder else 0.0)} {held_by}  [dim]{escape(what)}[/]")
    for tier in ("dram", "ssd"):
        used, capacity = host[f"{tier}_used_bytes"], host[f"{tier}_capacity_bytes"]
        share = used / capacity if capacity else 0.0
        console.print(f"  {tier:6} {bar(share)} {size(used)} of {size(capacity)}")


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, "dim"))


# Any: JSON; an older server says nothing of it.
def _progress(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return ""
    moved = f" {size(told['bytes_done'])} of {size(told['bytes_total'])}" if told["bytes_total"] else ""
    return f" {PHASE_WORDS.get(told['phase'], told['phase'])}{moved}"

"""`firstlight up` and `firstlight down`: the whole of Firstlight on this machine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json

if TYPE_CHECKING:
    from firstlight.launcher.run_file import RunRecord

Port = Annotated[int | None, typer.Option("--port", help="Port of the API.  [FIRSTLIGHT_API_PORT]")]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="Where all state is kept.  [FIRSTLIGHT_STATE_DIR]")
]
Hosts = Annotated[
    str | None, typer.Option("--hosts", help="GPU hosts to run, comma-separated.  [FIRSTLIGHT_HOST_IDS]")
]


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight up · firstlight up --port 9000 --hosts host-a")(up)
    app.command(epilog="Example: firstlight down")(down)


def up(port: Port = None, state_dir: StateDir = None, hosts: Hosts = None, as_json: AsJson = False) -> None:
    """Start everything on this machine and stay until Ctrl-C.

    Starts Postgres, Temporal, the API, a control worker and the GPU hosts. With FIRSTLIGHT_DATABASE_URL or
    FIRSTLIGHT_TEMPORAL_ADDRESS the given cluster is used instead. With --json one object says where they are
    once all is up; how that goes is told on standard error.
    """
    from firstlight.launcher.local import run_until_stopped
    from firstlight.settings import read_settings

    settings = read_settings(api_port=port, state_dir=state_dir, host_ids=hosts)
    if as_json:
        run_until_stopped(settings, console=Console(stderr=True, highlight=False), use=_stay_for_a_program)
    else:
        run_until_stopped(settings, console=console, use=_stay)


async def _stay(record: RunRecord) -> None:
    console.print(
        f"\n[bold]API[/]          {record.api_url}/v1\n"
        f"[bold]Temporal UI[/]  {record.temporal_ui_url or '-'}\n"
        "[dim]Deploy a model with `firstlight deploy NAME SOURCE`; Ctrl-C stops everything.[/]",
        soft_wrap=True,
    )
    await asyncio.Event().wait()


async def _stay_for_a_program(record: RunRecord) -> None:
    print_json({"api_url": record.api_url, "temporal_ui_url": record.temporal_ui_url or None})
    sys.stdout.flush()
    await asyncio.Event().wait()


def down(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Stop what `firstlight up` runs here, leftovers of a killed run included."""
    from firstlight.launcher.down import stop_run
    from firstlight.settings import read_settings

    outcome = stop_run(read_settings(state_dir=state_dir))
    if as_json:
        print_json({"outcome": outcome})
    else:
        console.print(outcome)

"""`firstlight health ROLE`: for the probes of containers and service managers."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: firstlight health gpu-host")(health)


def health(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="api, control-worker or gpu-host.")],
) -> None:
    """Exit with 0 if the role that runs here with this environment does its work; else say what is wrong."""
    from firstlight.launcher.health import check_role
    from firstlight.settings import read_settings

    print(asyncio.run(check_role(role, read_settings())))

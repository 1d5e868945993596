"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ApiUrl = Annotated[
    str | None,
    typer.Option(
        "--api",
        envvar="FIRSTLIGHT_API_URL",
        metavar="URL",
        help="Base URL of the API; unset: the one that `firstlight up` runs here.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--key", envvar="FIRSTLIGHT_API_KEY", metavar="KEY", help="API key, where one is required."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name the model was deployed under.")]

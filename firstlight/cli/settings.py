"""`firstlight settings`: every setting, what it means, and what this shell would give a process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, table


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight settings · firstlight settings --set --json")(settings)


def settings(
    only_set: Annotated[bool, typer.Option("--set", help="Only those that are set here.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The reference page, docs/operators/settings.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every setting with its value here, its default, its unit and its meaning; secrets are masked."""
    from firstlight.settings import read_settings
    from firstlight.settings_reference import markdown, setting_rows

    rows = [row for row in setting_rows(read_settings()) if row.is_set or not only_set]
    if as_markdown:
        print(markdown(rows), end="")
        return
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    shown = table("VARIABLE", "VALUE", "TAKES", "MEANING")
    for row in rows:
        value = row.value if row.value is not None else "-"
        shown.add_row(row.variable, f"[bold]{value}[/]" if row.is_set else value, row.kind, row.meaning)
    console.print(shown)

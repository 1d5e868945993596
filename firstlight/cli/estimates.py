"""`firstlight estimates`: how far predictions of starts and of moves were off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json, seconds, table


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight estimates · firstlight estimates --model qwen --last 50")(
        estimates
    )


def estimates(
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    last: Annotated[
        int, typer.Option("-n", "--last", min=1, max=1000, help="So many of each model, host and tier.")
    ] = 20,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show estimated beside actual of the last starts and moves, with the errors' median and p90."""
    with ApiClient(api, key) as client:
        found = client.get("/admin/v1/estimates", model=model, last=last)
    if as_json:
        print_json(found)
        return
    if not found["starts"] and not found["moves"]:
        console.print("nothing has been started yet; the first start is foretold from the host's probe")
    if found["starts"]:
        _print_starts(found)
    if found["moves"]:
        _print_moves(found)


# Any below: the JSON of `/admin/v1/estimates`.
def _print_starts(found: Mapping[str, Any]) -> None:
    shown = table(
        "MODEL", "HOST", "FROM", "STARTS", "PREDICTED", "ACTUAL", "OFF (MEDIAN)", "OFF (P90)", "LATER BY"
    )
    for row in found["starts"]:
        shown.add_row(row["model"], row["host_id"], row["tier"], *_start_figures(row["errors"]))
    if found["overall"] is not None:
        shown.add_row("[bold]all[/]", "", "", *_start_figures(found["overall"]))
    console.print(shown)


def _start_figures(errors: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(errors["starts"]),
        seconds(errors["predicted_s"]),
        seconds(errors["actual_s"]),
        f"{seconds(errors['error_median_s'])}, {errors['error_median']:.0%}",
        f"{seconds(errors['error_p90_s'])}, {errors['error_p90']:.0%}",
        f"{'-' if errors['bias_s'] < 0 else '+'}{seconds(abs(errors['bias_s']))}",
    )


def _print_moves(found: Mapping[str, Any]) -> None:
    console.print()
    shown = table(
        "MOVES OF", "TO HOSTS LIKE", "MOVES", "PREDICTED", "ACTUAL", "OFF (MEDIAN)", "OFF (P90)", "NEXT"
    )
    for row in found["moves"]:
        shown.add_row(
            row["model"],
            row["host_class"],
            str(row["moves"]),
            seconds(row["predicted_s"]),
            seconds(row["actual_s"]),
            f"{row['error_median']:.0%}",
            f"{row['error_p90']:.0%}",
            f"{seconds(row['overhead_s'])} + {row['seconds_per_token'] * 1e3:.3g} ms a token",
        )
    console.print(shown)

"""`firstlight simulate`: what a fleet would do under one policy or another, without a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from firstlight.cli.output import console, print_json, table
from firstlight.domain.errors import InvalidInput


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: firstlight simulate gsm8k · firstlight simulate fleet.yaml -p firstlight -p random "
        "--seeds 10 --html report.html"
    )(simulate)


def simulate(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="YAML files, or names of scenarios that come along.")
    ] = None,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="Only these (default: all).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs per scenario and policy.")] = 3,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV like the Azure LLM inference trace, where one is replayed."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write tables and plots there, as one page.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write one row per run there: .csv or .parquet.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: means and half-widths, or the list.")
    ] = False,
) -> None:
    """Replay traces on simulated fleets, under the production scheduler and those of other systems.

    Without a scenario, list those that come along.
    """
    # Here, as every other command can do without.
    from simulator.comparing import compare
    from simulator.html_report import page
    from simulator.policies.catalogue import POLICIES
    from simulator.scenario import find_scenarios, with_trace
    from simulator.tables import check_output, table_of, write_rows

    if not scenarios:
        _list(as_json=as_json)
        return
    if output is not None:
        check_output(output)
    if html is not None:
        check_output(html, endings=(".html", ".htm"))
    found = [with_trace(one, trace) for name in scenarios for one in find_scenarios(name)]
    if len({one.name for one in found}) < len(found):
        raise InvalidInput("two of the scenarios have one name")
    chosen = list(dict.fromkeys(policies or POLICIES))
    with Progress(transient=True, console=console) as progress:
        task = progress.add_task("simulating", total=len(found) * len(chosen) * seeds)
        comparison = compare(
            found, chosen, range(seeds), processes=processes, on_done=lambda: progress.advance(task)
        )
    if output is not None:
        write_rows(output, comparison.summaries)
    if html is not None:
        html.write_text(page(found, comparison.summaries, comparison.outcomes))
    if as_json:
        print_json([one.as_json() for one in comparison.summaries.values()])
        return
    for scenario in found:
        console.print(table_of(f"{scenario.name}: {scenario.title}", comparison.summaries, scenario.name))


def _list(*, as_json: bool) -> None:
    from simulator.scenario import all_scenarios

    if as_json:
        print_json([{"name": one.name, "title": one.title} for one in all_scenarios()])
        return
    listed = table("scenario", "what")
    for scenario in all_scenarios():
        listed.add_row(scenario.name, scenario.title)
    console.print(listed)

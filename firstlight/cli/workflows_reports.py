"""Reports on a terminal or as JSON, and the question before many are touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.text import Text

from firstlight.cli.output import console, print_json
from firstlight.recovery.report import Report, Verdict

if TYPE_CHECKING:
    from firstlight.recovery.found import FoundWorkflow, Search

STYLES = {
    Verdict.DONE: "green",
    Verdict.SAME: "green",
    Verdict.WOULD: "cyan",
    Verdict.NOTHING: "dim",
    Verdict.REFUSED: "red",
    Verdict.DIFFERS: "red",
}


def print_reports(reports: Sequence[Report], *, as_json: bool, is_one: bool) -> None:
    """Leaves with exit code 1 when one was refused or differs."""
    if as_json:
        rows = [dataclasses.asdict(report) for report in reports]
        print_json(rows[0] if is_one else rows)
    elif not reports:
        console.print("no workflow is like that: nothing was done")
    else:
        for report in reports:
            _print(report)
    if any(report.is_bad for report in reports):
        raise typer.Exit(1)


def _print(report: Report) -> None:
    verdict = Text(str(report.verdict), style=STYLES[report.verdict])
    code = f" [{report.code}]" if report.code else ""
    line = Text.assemble((report.workflow_id, "bold"), "  ", verdict, f"{code}  {report.sentence}")
    console.print(line, soft_wrap=True)
    if report.reserves is not None:
        verb = "would reserve" if report.verdict is Verdict.WOULD else "reserves"
        console.print(f"  {verb} {escape(str(report.reserves))}", soft_wrap=True)
    if report.new_workflow_id:
        console.print(f"  goes on as {escape(report.new_workflow_id)}", soft_wrap=True)
    elif report.new_run_id:
        console.print(f"  goes on as run {report.new_run_id}")


def warn_of_more(found: Search) -> None:
    """What is not shown would be taken for not there."""
    if found.has_more:
        typer.echo(f"firstlight: there are more than these {len(found.rows)}: -n takes more", err=True)
    if found.gave_up_after is not None:
        typer.echo(
            f"firstlight: only the newest {found.gave_up_after} runs were looked at; narrow it down by "
            "--model, --host or --type to see behind them",
            err=True,
        )


def ask_before(found: Sequence[FoundWorkflow], what: str, *, yes: bool) -> None:
    """Leaves with exit code 1 when the answer is no; 2 when nobody is there to be asked."""
    if yes or len(found) <= 1:
        return
    for row in found:
        typer.echo(f"{row.status:11} {row.workflow_id}", err=True)
    try:
        is_meant = typer.confirm(f"{what} these {len(found)} workflows?", err=True)
    except typer.Abort:
        typer.echo("firstlight: nothing was done; say --yes where nobody can answer", err=True)
        raise typer.Exit(2) from None
    if not is_meant:
        typer.echo("firstlight: nothing was done", err=True)
        raise typer.Exit(1)

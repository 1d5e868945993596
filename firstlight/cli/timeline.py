"""One start as a bar chart: a row per phase, drawn where in time it stood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from firstlight.cli.output import console, seconds, table

WIDTH = 40
PHASES = ("queue", "download", "load", "free", "attach", "control")
_NAMES = {"control": "workflow", "free": "making room"}


@dataclass(frozen=True, slots=True)
class PhaseRow:
    name: str
    predicted_s: float | None
    actual_s: float | None


def phase_rows(start: Mapping[str, Any]) -> list[PhaseRow]:
    """Phases in the order they happen; those that are nothing in both columns are left out."""
    predicted, actual = start.get("predicted") or {}, start.get("actual") or {}
    rows = [
        PhaseRow(_NAMES.get(phase, phase), predicted.get(f"{phase}_s"), actual.get(f"{phase}_s"))
        for phase in PHASES
    ]
    rows.append(PhaseRow("first token", None, start.get("first_token_s")))
    return [row for row in rows if (row.predicted_s or 0.0) + (row.actual_s or 0.0) >= 0.0005]


def print_timeline(start: Mapping[str, Any]) -> None:
    console.print(_headline(start))
    if phase_rows(start):
        console.print(timeline_table(start))
    if failure := start.get("failure"):
        # An instance that came up and ended later is no failed start.
        told = f"[dim]ended since: {failure}[/]" if _came_up(start) else f"[red]{failure}[/]"
        console.print(f"  {told}", soft_wrap=True)
    console.print()


def timeline_table(start: Mapping[str, Any]) -> Table:
    rows = phase_rows(start)
    shown = table("  PHASE", "PREDICTED", "ACTUAL", "")
    span_s = _sum(row.actual_s for row in rows)
    begin_s = 0.0
    for row in rows:
        shown.add_row(
            f"  {row.name}",
            seconds(row.predicted_s),
            seconds(row.actual_s),
            _bar(begin_s, row.actual_s or 0.0, span_s),
        )
        begin_s += row.actual_s or 0.0
    actual_s = (start.get("actual") or {}).get("total_s")
    shown.add_row("  [bold]ready[/]", seconds(_sum(row.predicted_s for row in rows)), seconds(actual_s), "")
    return shown


def _came_up(start: Mapping[str, Any]) -> bool:
    return start.get("ready_at_unix_s") is not None


def _headline(start: Mapping[str, Any]) -> Text:
    state = "ready" if start["state"] == "failed" and _came_up(start) else str(start["state"])
    style = {"ready": "green", "failed": "red"}.get(state, "yellow")
    tier = start.get("tier")
    return Text.assemble(
        (str(start["model"]), "bold"),
        f" on {start['host_id'] or 'no host'}",
        f", from {tier}" if tier else "",
        "  ",
        (state, style),
    )


def _sum(values: Iterable[float | None]) -> float:
    return sum(value or 0.0 for value in values)


def _bar(begin_s: float, length_s: float, span_s: float) -> Text:
    if length_s <= 0 or span_s <= 0:
        return Text("")
    before = min(WIDTH - 1, round(begin_s / span_s * WIDTH))
    return Text(" " * before + "█" * max(1, round(length_s / span_s * WIDTH)), style="cyan")

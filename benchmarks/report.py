"""What every benchmark prints and writes: machine, rows of quantiles, and figures against their bounds."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity over `count` repetitions; `unit` is ms, s, ratio …"""

    name: str
    unit: str
    count: int
    p50: float
    p99: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Reach:
    """One figure an issue asks for. `bound` is written as a condition on `value`, such as '<= 60 ms'.

    What this machine cannot measure has neither value nor verdict, and says `why`.
    """

    name: str
    value: float | None
    bound: str
    holds: bool | None
    why: str = ""


@dataclass(slots=True)
class Report:
    benchmark: str
    rows: list[Row] = field(default_factory=list)
    reach: list[Reach] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # Any: each repetition as it was, for whoever wants to look behind the quantiles; JSON.
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        """A figure was measured and misses its bound."""
        return any(figure.holds is False for figure in self.reach)

    def add(self, name: str, values: Sequence[float], *, unit: str) -> Row | None:
        """Summarise `values`; p99 is the largest below 100 repetitions. No values: no row."""
        if not values:
            return None
        row = Row(
            name=name,
            unit=unit,
            count=len(values),
            p50=median(values),
            p99=quantile(values, 0.99),
            minimum=min(values),
            maximum=max(values),
        )
        self.rows.append(row)
        return row

    def require(
        self,
        name: str,
        value: float,
        *,
        unit: str,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Hold a measured `value` against a bound."""
        if at_most is not None:
            self.reach.append(Reach(name, value, f"<= {at_most:g} {unit}".strip(), value <= at_most))
        if at_least is not None:
            self.reach.append(Reach(name, value, f">= {at_least:g} {unit}".strip(), value >= at_least))

    def not_measured(self, name: str, *, bound: str, why: str) -> None:
        """A figure that is asked for and that this run has no means to take: shown, and never as held."""
        self.reach.append(Reach(name, None, bound, None, why))

    def print(self) -> None:
        self.print_rows()
        self.print_reach()

    def print_rows(self) -> None:
        console = wide_console()
        table = Table(title=f"{self.benchmark} · {machine()['cpu']} · {os.cpu_count()} cores")
        for column in ("measured", "n", "p50", "p99", "min", "max", "unit"):
            table.add_column(column, justify="left" if column in ("measured", "unit") else "right")
        for row in self.rows:
            figures = (f"{figure:,.2f}" for figure in (row.p50, row.p99, row.minimum, row.maximum))
            table.add_row(row.name, str(row.count), *figures, row.unit)
        console.print(table)

    def print_reach(self) -> None:
        console = wide_console()
        reach = Table(title="reach")
        for column in ("figure", "value", "bound", "holds"):
            reach.add_column(column)
        for figure in self.reach:
            verdict = "[green]yes[/]" if figure.holds else "[red]no[/]"
            if figure.value is None:
                reach.add_row(figure.name, "not measured", figure.bound, f"[yellow]{figure.why}[/]")
            else:
                reach.add_row(figure.name, f"{figure.value:,.3f}", figure.bound, verdict)
        console.print(reach)
        for note in self.notes:
            console.print(f"• {note}")

    def write(self, file: Path) -> None:
        body = {
            "benchmark": self.benchmark,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "rows": [asdict(row) for row in self.rows],
            "reach": [asdict(figure) for figure in self.reach],
            "notes": self.notes,
            **({"trials": self.trials} if self.trials else {}),
        }
        file.write_text(json.dumps(body, indent=2) + "\n")


def wide_console() -> Console:
    """The terminal's width; where output goes to a file, wide enough that no table is folded."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest-rank quantile."""
    ordered = sorted(values)
    rank = math.ceil(share * len(ordered))
    return ordered[min(len(ordered), max(1, rank)) - 1]


def machine() -> dict[str, str | int]:
    """Facts of this machine that figures depend on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "memory_bytes": memory_bytes,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "platform": sys.platform,
    }

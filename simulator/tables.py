"""Summaries as tables for a terminal, and as CSV or Parquet for whatever comes after."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from firstlight.domain.errors import InvalidInput
from simulator.statistics import Interval
from simulator.summary import Key, Summary


def table_of(
    title: str, summaries: Mapping[Key, Summary], scenario: str, *, whole_ttft: bool = False
) -> Table:
    """One scenario: a line per policy, means ± 95% over seeds. `whole_ttft`: its p50 and p95 as well."""
    shares = (50, 95, 99) if whole_ttft else (99,)
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("policy")
    for column in (
        "start-up p50 s", "p95 s", "p99 s", *(f"TTFT p{share} s" for share in shares), "inside", "warm",
        "SSD", "DRAM", "far", "moves", "preempted", "GPUs used",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for (where, policy), summary in summaries.items():
        if where == scenario:
            table.add_row(policy, *_cells(summary, shares))
    return table


def _cells(summary: Summary, ttft_shares: Sequence[int]) -> list[str]:
    far = summary.mean("starts_remote") + summary.mean("starts_peer")
    return [
        *(_seconds(summary.interval(f"startup_p{share}_s")) for share in (50, 95, 99)),
        *(_seconds(summary.interval(f"ttft_p{share}_s")) for share in ttft_shares),
        f"{summary.mean('inside_share'):.1%}",
        f"{summary.mean('warm_share'):.0%}",
        f"{summary.mean('starts_ssd'):.0f}",
        f"{summary.mean('starts_dram'):.0f}",
        f"{far:.0f}",
        f"{summary.mean('migrations'):.0f}",
        f"{summary.mean('preemptions'):.0f}",
        f"{summary.mean('gpu_used_share'):.0%}",
    ]


def _seconds(value: Interval) -> str:
    return f"{value.mean:.2f} ±{value.half:.2f}" if value.count > 1 else f"{value.mean:.2f}"


def check_output(file: Path, *, endings: Sequence[str] = (".csv", ".parquet")) -> None:
    """Before hours of runs whose results would have nowhere to go.

    Raises: InvalidInput for another ending, no folder to write into, or without Parquet's library.
    """
    if file.suffix not in endings:
        raise InvalidInput(f"{file}: must end with {' or '.join(endings)}")
    if not file.parent.is_dir():
        raise InvalidInput(f"{file}: there is no folder {file.parent}")
    if file.is_dir():
        raise InvalidInput(f"{file}: is a folder")
    if file.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InvalidInput("Parquet needs pyarrow: install firstlight[parquet], or write .csv")


def write_rows(file: Path, summaries: Mapping[Key, Summary]) -> None:
    """One row per scenario, policy and seed; the ending says which format. Raises: as `check_output`."""
    check_output(file)
    rows = [
        {"scenario": one.scenario, "policy": one.policy, "run": run, **figures}
        for one in summaries.values()
        for run, figures in enumerate(one.runs)
    ]
    if file.suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
        return
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)

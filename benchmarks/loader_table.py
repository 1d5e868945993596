"""The table of the loader's benchmark: one line a way, medians and [range]."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.loader_figures import GB, STATES, Measured, paired, spread
from benchmarks.loader_limit import Limit
from benchmarks.report import wide_console

TITLES = {
    "cold": "cold: page cache dropped, verified",
    "warm": "warm: page cache (peers) or DRAM pool (store) holds all of it, verified",
    "pressed": "under memory pressure: the page cache is gone, the pool is not",
}
COLUMNS = ("", "returned s", "resident s", "+ checksum s", "CPU-s/GB", "peak MiB (shared)", "rate / limit")


def print_tables(measured: Measured, limit: Limit, missing: Sequence[str]) -> None:
    console = wide_console()
    for state in STATES:
        names = (*measured.names(state, ours=True), *measured.names(state, ours=False))
        if not names:
            continue
        table = Table(title=TITLES[state])
        for column in COLUMNS:
            table.add_column(column, justify="left" if not column else "right")
        if state == "cold":
            table.add_row(*_limit_row(measured, limit), style="dim")
        for name in names:
            table.add_row(*_row(measured, name, state), style="bold" if measured.ways[name].is_ours else "")
        for line in missing:
            table.add_row(line, style="dim")
        console.print(table)


def _limit_row(measured: Measured, limit: Limit) -> list[str]:
    seconds = [measured.limit_s(one.round) for one in measured.limits]
    cpu = [one.cpu_s_per_byte * GB for one in measured.limits]
    return [f"limit: {limit}", spread(seconds), "", "", spread(cpu), "", "1"]


def _row(measured: Measured, name: str, state: str) -> list[str]:
    trials = [trial.taken for trial in measured.of(name, state)]
    peak = sorted(one.peak_bytes for one in trials)[len(trials) // 2] >> 20
    shared = sorted(one.shared_bytes for one in trials)[len(trials) // 2] >> 20
    limits = {one.round: measured.limit_s(one.round) for one in measured.limits}
    share = paired(limits, measured.values(name, state, lambda taken: taken.returned_s))
    return [
        measured.ways[name].title,
        spread([one.returned_s for one in trials]),
        spread([one.resident_s for one in trials]),
        spread([one.checked_s for one in trials]),
        spread(list(measured.cpu_s_per_gb(name, state).values())),
        f"{peak} ({shared})",
        spread(share, digits=2) if state == "cold" else "",
    ]

"""All scenarios under all policies, and the figures that ours is held to.

    python -m simulator.evaluate --json FILE [--quick] [--seeds N] [--html FILE] [--trace FILE] [--only NAME]…

Exit code 1: a figure misses its bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress

from benchmarks.report import Report, wide_console
from firstlight.domain.errors import FirstlightError, InvalidInput
from simulator.comparing import Comparison, compare
from simulator.html_report import page
from simulator.policies.catalogue import POLICIES
from simulator.scenario import all_scenarios, with_trace
from simulator.summary import LATENCIES, Key, Summary
from simulator.tables import check_output, table_of, write_rows

OURS, PAPER, PREEMPTING = "firstlight", "serverlessllm", "shepherd"
QUICK = ("gsm8k-rps-0.8", "sharegpt-rps-1.4", "mixed", "few-copies", "opt-30b-gsm8k")


def main() -> int:
    arguments = _arguments()
    try:
        _check_outputs(arguments)
        only = QUICK if arguments.quick and not arguments.only else tuple(arguments.only)
        scenarios = [
            with_trace(scenario, arguments.trace)
            for scenario in all_scenarios()
            if not only or scenario.name in only
        ]
        if not scenarios:
            raise InvalidInput(f"no scenario is named {' or '.join(only)}")
        seeds = range(3 if arguments.quick and arguments.seeds is None else arguments.seeds or 10)
        total = len(scenarios) * len(POLICIES) * len(seeds)
        with Progress(transient=True) as progress:
            task = progress.add_task("simulating", total=total)
            comparison = compare(
                scenarios,
                list(POLICIES),
                seeds,
                processes=arguments.processes,
                on_done=lambda: progress.advance(task),
            )
        report = _told(arguments, comparison)
    except FirstlightError as error:
        sys.stderr.write(f"simulator: {error.message}\n")
        return 2
    return 1 if report.has_failed else 0


def _told(arguments: argparse.Namespace, comparison: Comparison) -> Report:
    """Print it all, and write what was asked for."""
    report = report_of(comparison)
    console = wide_console()
    for scenario in comparison.scenarios:
        title = f"{scenario.name}: {scenario.title}"
        console.print(table_of(title, comparison.summaries, scenario.name, whole_ttft=True))
    report.print_reach()
    if arguments.json:
        report.write(arguments.json)
    if arguments.csv:
        write_rows(arguments.csv, comparison.summaries)
    if arguments.html:
        arguments.html.write_text(page(comparison.scenarios, comparison.summaries, comparison.outcomes))
    return report


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises: InvalidInput for a file that could not be written once all has been played."""
    for file, endings in (
        (arguments.json, (".json",)),
        (arguments.html, (".html", ".htm")),
        (arguments.csv, (".csv", ".parquet")),
    ):
        if file is not None:
            check_output(file, endings=endings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument("--html", type=Path, help="write tables and plots there, as one page")
    parser.add_argument("--csv", type=Path, help="write one row per run there, .csv or .parquet")
    parser.add_argument("--quick", action="store_true", help="a few scenarios, three seeds: a minute")
    parser.add_argument("--seeds", type=int, help="seeds per scenario and policy (default 10)")
    parser.add_argument("--trace", type=Path, help="Azure LLM inference trace 2023, as CSV")
    parser.add_argument("--only", action="append", default=[], help="scenarios by name (repeatable)")
    parser.add_argument("--processes", type=int, help="default: one per core")
    return parser.parse_args()


def report_of(comparison: Comparison) -> Report:
    """The figures of the comparison, each held against its bound."""
    report = Report("simulated fleets")
    summaries = comparison.summaries
    names = [scenario.name for scenario in comparison.scenarios]
    for name in names:
        _at_least_as_good(report, name, summaries)
    for what in ("startup", "ttft"):
        gains = [
            _ratio(summaries[name, PAPER].mean(f"{what}_p99_s"), summaries[name, OURS].mean(f"{what}_p99_s"))
            for name in names
        ]
        title = "start-up latency" if what == "startup" else "TTFT"
        report.require(
            f"{title} p99, {PAPER} / {OURS}, mean over scenarios",
            sum(gains) / len(gains),
            unit="×",
            at_least=1.5,
        )
    report.require(
        f"tokens computed again after preemption, {OURS} beyond {PREEMPTING}, worst scenario",
        max(
            summaries[name, OURS].mean("preempted_tokens")
            - summaries[name, PREEMPTING].mean("preempted_tokens")
            for name in names
        ),
        unit="tokens",
        at_most=0,
    )
    report.require(
        f"share inside the time-out, {OURS} less the best other policy, worst scenario",
        min(_lead(name, summaries) for name in names),
        unit="",
        at_least=0,
    )
    report.notes.append(f"means over {len(next(iter(summaries.values())).runs)} seeds; half-widths are 95%")
    report.trials = [summary.as_json() for summary in summaries.values()]
    return report


def _at_least_as_good(report: Report, name: str, summaries: Mapping[Key, Summary]) -> None:
    """The worst of six ratios: p50, p95 and p99 of start-up latency and of TTFT."""
    ours, paper = summaries[name, OURS], summaries[name, PAPER]
    ratios = {figure: _ratio(ours.mean(figure), paper.mean(figure)) for figure in LATENCIES}
    worst = max(ratios, key=lambda figure: ratios[figure])
    report.require(f"{name}: worst of six, {OURS} / {PAPER} ({worst})", ratios[worst], unit="×", at_most=1)


def _ratio(above: float, below: float) -> float:
    """Two figures of nothing are equal."""
    if below == 0:
        return 1.0 if above == 0 else float("inf")
    return above / below


def _lead(name: str, summaries: Mapping[Key, Summary]) -> float:
    others = [
        summary.mean("inside_share")
        for (where, policy), summary in summaries.items()
        if where == name and policy != OURS
    ]
    return summaries[name, OURS].mean("inside_share") - max(others)


if __name__ == "__main__":
    raise SystemExit(main())

"""The loader beside its peers: the same random checkpoint, cold and warm, each load in a fresh process.

    python -m benchmarks.loader [--size-gib N] [--json FILE] [--plot FILE.png] [--rounds N] [--quick]
                                [--ablation] [--pressure balloon] [--directory DIR] [--keep]

The limit is fio's direct read of the same file into huge pages. Every load is timed until the call returned,
until every page was touched, and until every tensor's checksum was held against the known one. Loads are
paired: every way runs once in each round, another first each time, and ratios are taken within a round.
Run as root on a quiet machine: huge pages are reserved for fio and for the store's pool, and given back.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from benchmarks.loader_ablation import WAYS as ABLATION
from benchmarks.loader_ablation import report_ablation
from benchmarks.loader_elsewhere import measure_elsewhere
from benchmarks.loader_figures import Measured, absent, summarise
from benchmarks.loader_files import BenchmarkFiles, prepare_files, remove_files
from benchmarks.loader_huge_pages import huge_pages
from benchmarks.loader_limit import Limit, find_limit, one_at_a_time
from benchmarks.loader_plot import draw
from benchmarks.loader_pressure import KINDS
from benchmarks.loader_rounds import Bench, cold_round, warm_round
from benchmarks.loader_store import BenchmarkStore, pool_bytes
from benchmarks.loader_table import print_tables
from benchmarks.loader_ways import Way, all_ways
from benchmarks.report import Report

GIB = 1 << 30
QUICK_ROUNDS = 2


def main() -> int:
    arguments = _arguments()
    # Told to end, it still ends the store and gives the huge pages back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report("loader")
    directory = arguments.directory.resolve()
    files = prepare_files(directory, int(arguments.size_gib * GIB))
    measured = Measured(_chosen(arguments.only), files.size_bytes, files.partition.stat().st_size)
    slowdowns: list[tuple[str, list[float]]] = []
    try:
        # Twice the pool: the store's, and that of a process that loads into one of its own.
        with huge_pages(2 * pool_bytes(files)) as why_not:
            _measure(report, measured, files, arguments, why_not)
            if arguments.ablation:
                slowdowns = _ablation(report, files, arguments)
    finally:
        if not arguments.keep:
            remove_files(files)
    measure_elsewhere(
        report,
        directory,
        size_bytes=int(arguments.size_gib * GIB),
        rounds=_rounds(arguments),
        is_quick=arguments.quick,
    )
    if arguments.plot and (why := draw(measured, slowdowns, arguments.plot)):
        report.notes.append(why)
    report.print_reach()
    if arguments.json:
        report.write(arguments.json)
    return 1 if report.has_failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size-gib", type=float, default=2.4, help="of the checkpoint (default 2.4)")
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument("--plot", type=Path, help="draw it there; needs matplotlib")
    parser.add_argument("--rounds", type=int, default=7, help="of every way, cold and warm (default 7)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: a try, no measurement")
    parser.add_argument("--ablation", action="store_true", help="also: turn off one idea of ours at a time")
    parser.add_argument(
        "--pressure",
        choices=KINDS,
        default="drop",
        help="drop these files from the page cache, or really fill the machine's memory (balloon)",
    )
    parser.add_argument("--only", help="names of ways, with commas between; the reach is that of these")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(".firstlight/benchmarks/loader"),
        help="where the files lie: on the SSD that is measured",
    )
    parser.add_argument("--keep", action="store_true", help="keep the files for the next run")
    return parser.parse_args()


def _chosen(only: str | None) -> dict[str, Way]:
    ways = all_ways()
    if only is None:
        return ways
    if unknown := set(only.split(",")) - ways.keys():
        raise SystemExit(f"no such way: {', '.join(sorted(unknown))}; there are {', '.join(ways)}")
    return {name: ways[name] for name in only.split(",")}


def _rounds(arguments: argparse.Namespace) -> int:
    return min(QUICK_ROUNDS, arguments.rounds) if arguments.quick else int(arguments.rounds)


def _measure(
    report: Report,
    measured: Measured,
    files: BenchmarkFiles,
    arguments: argparse.Namespace,
    why_no_huge_pages: str | None,
) -> None:
    rounds = _rounds(arguments)
    limit = find_limit(files.partition)
    report.notes += [why for why in (why_no_huge_pages, limit.why) if why]
    if limit.fio:
        _one_at_a_time(report, files)
    present = [way for way in measured.ways.values() if not way.missing]
    missing = absent(measured.ways.values())
    with BenchmarkStore(files, files.directory / "store") as store:
        report.notes.append(f"the store's pool is {store.arena_kind}, made resident before the first round")
        bench = Bench(files, store, limit)
        _cold(bench, measured, [way for way in present if way.is_cold], rounds)
        _warm(bench, measured, [way for way in present if way.is_warm], rounds, arguments.pressure)
    report.notes += missing
    report.notes.append(f"memory pressure: {arguments.pressure}")
    summarise(report, measured, limit)
    print_tables(measured, limit, missing)


def _one_at_a_time(report: Report, files: BenchmarkFiles) -> None:
    """Why the limit has many requests under way: see loader_limit."""
    with huge_pages(files.partition.stat().st_size) as why:
        if why is not None:
            report.notes.append(f"direct reads one at a time were not measured: {why}")
            return
        for own_places, into in ((False, "one buffer"), (True, "own places")):
            try:
                seconds = [one_at_a_time(files.partition, own_places=own_places) for _ in range(3)]
            except OSError as failure:
                # Another process took them between the reservation and its use.
                report.notes.append(f"direct reads one at a time into {into} were not measured: {failure}")
                continue
            report.add(f"no limit: 4 MiB one at a time into {into}", [s * 1e3 for s in seconds], unit="ms")


def _cold(bench: Bench, measured: Measured, ways: Sequence[Way], rounds: int) -> None:
    if not ways:
        return
    beside = next((way for way in ways if way.store == "ssd"), ways[0])
    with Progress(transient=True) as progress:
        task = progress.add_task("cold", total=rounds * len(ways))
        for number in range(rounds):
            for trial, limit in cold_round(bench, ways, number, beside):
                measured.trials.append(trial)
                if limit is not None:
                    measured.limits.append(limit)
                progress.advance(task)


def _warm(bench: Bench, measured: Measured, ways: Sequence[Way], rounds: int, pressure: str) -> None:
    """Warm loads; those that pressure could slow are made once more right behind, under pressure."""
    pressed = _pressed(ways)
    with Progress(transient=True) as progress:
        task = progress.add_task("warm, and under memory pressure", total=rounds * len([*ways, *pressed]))
        for number in range(rounds if ways else 0):
            for trial in warm_round(bench, ways, number, pressed, pressure):
                measured.trials.append(trial)
                progress.advance(task)


def _pressed(ways: Sequence[Way]) -> list[Way]:
    """Ours from the pool, and every peer that a warm page cache had made fast, once it is gone."""
    chosen = [way for way in ways if way.store == "dram" or (not way.is_ours and way.name in _MAPPING)]
    return chosen if any(way.store == "dram" for way in chosen) else []


def _ablation(
    report: Report, files: BenchmarkFiles, arguments: argparse.Namespace
) -> list[tuple[str, list[float]]]:
    """After the store has ended: every load has memory of its own."""
    trials = []
    rounds = _rounds(arguments)
    bench = Bench(files, None, Limit(None))
    with Progress(transient=True) as progress:
        task = progress.add_task("ablation", total=rounds * len(ABLATION))
        for number in range(rounds):
            for trial, _ in cold_round(bench, ABLATION, number):
                trials.append(trial)
                progress.advance(task)
    return report_ablation(report, trials)


# The peers that are fast for being mapped from the page cache: what pressure takes away is theirs.
_MAPPING = ("safetensors-load-file", "safetensors-safe-open", "torch-load-mmap", "transformers")


if __name__ == "__main__":
    raise SystemExit(main())

"""How long the scheduler takes to decide, by the size of the fleet.

    python -m benchmarks.scheduler [--quick] [--json FILE]

For fleets of 4, 100 and 1,000 hosts with 4 to 8 GPUs each, of which half, nearly all or all are held, and 100
or 10,000 models: time per decision about a model drawn by Zipf's law, every plan allowed. Then the same with
the fleet read from a real Postgres before each decision, as the front end does it. The first column is also
what a guess costs on the picture of the fleet that a front end keeps up to date by notifications.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from rich.progress import Progress

from benchmarks.report import Report
from benchmarks.scheduler_database import fill, postgres
from benchmarks.scheduler_fleet import FleetShape, Zipf, make_fleet, make_requests
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_fleet
from firstlight.domain.fleet import FleetSnapshot, StartRequest
from firstlight.domain.scheduler import decide

HOSTS = (4, 100, 1000)
MODELS = (100, 10_000)
LOADS = (0.5, 0.95, 1.0)
DECISIONS = 400
QUICK_DECISIONS = 40
# Each reads the whole fleet.
READS = 60
QUICK_READS = 10
SEED = 5
# p99 of a decision, by hosts.
BOUNDS_MS = {100: 2.0, 1000: 10.0}


def main() -> None:
    arguments = _arguments()
    report = Report("scheduler")
    hosts = HOSTS[:2] if arguments.quick else HOSTS
    shapes = [
        FleetShape(hosts=count, models=models, load=load)
        for count in hosts
        for models in MODELS
        for load in LOADS
    ]
    measured = _deciding(report, shapes, QUICK_DECISIONS if arguments.quick else DECISIONS)
    for count, bound_ms in BOUNDS_MS.items():
        _reach(report, count, bound_ms)
    _growth(report, measured, hosts)
    asyncio.run(_reading(report, hosts, QUICK_READS if arguments.quick else READS))
    report.print()
    if arguments.json is not None:
        report.write(arguments.json)
    raise SystemExit(1 if report.has_failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler")
    parser.add_argument("--quick", action="store_true", help="small fleets, few decisions")
    parser.add_argument("--json", type=Path, help="write the report here")
    return parser.parse_args()


def _deciding(report: Report, shapes: Sequence[FleetShape], decisions: int) -> dict[FleetShape, list[float]]:
    """Milliseconds of each decision, by fleet.

    Decisions on one picture share what the first of them gathers; a row of its own says what that takes.
    """
    measured = {}
    firsts = max(10, decisions // 10)
    with Progress(transient=True) as progress:
        for shape in progress.track(shapes, description="deciding"):
            snapshot, zipf = make_fleet(shape, Random(SEED))
            kinds: Counter[str] = Counter()
            gc.collect()
            # As the front end does with what it holds when it starts.
            gc.freeze()
            timed = [_decision_ms(request, snapshot, kinds) for request in make_requests(zipf, decisions)]
            measured[shape] = [wall_ms for wall_ms, _ in timed]
            report.add(f"{shape.name}: decide", measured[shape], unit="ms")
            # On a machine that others use too the clock says more of them than of the scheduler.
            report.add(f"{shape.name}: CPU of it", [cpu_ms for _, cpu_ms in timed], unit="ms")
            first_ms = [
                _decision_ms(one, replace(snapshot), Counter())[0] for one in make_requests(zipf, firsts)
            ]
            report.add(f"{shape.name}: decide, first on a picture", first_ms, unit="ms")
            gc.unfreeze()
            report.trials.append({"fleet": shape.name, "decisions": dict(kinds), "ms": measured[shape]})
    return measured


def _decision_ms(request: StartRequest, snapshot: FleetSnapshot, kinds: Counter[str]) -> tuple[float, float]:
    """By the clock, and of this thread's CPU."""
    began_s, cpu_began_s = time.perf_counter(), time.thread_time()
    decision = decide(request, snapshot)
    elapsed_s, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_began_s
    kinds[type(decision).__name__] += 1
    return elapsed_s * 1000, cpu_s * 1000


def _reach(report: Report, hosts: int, bound_ms: float) -> None:
    """Every fleet of this size by itself: the worst one counts."""
    name = f"p99 of a decision among {hosts:,} hosts, the slowest of all fleets"
    worst = [
        row.p99
        for row in report.rows
        if row.name.startswith(f"{hosts:,} hosts") and row.name.endswith(": decide")
    ]
    if worst:
        report.require(name, max(worst), unit="ms", at_most=bound_ms)
    else:
        report.not_measured(name, bound=f"<= {bound_ms:g} ms", why="not with --quick")


def _growth(report: Report, measured: dict[FleetShape, list[float]], hosts: Sequence[int]) -> None:
    """Mean decision over all fleets of one size, per host."""
    name = "growth of the mean decision from 100 to 1,000 hosts"
    if 1000 not in hosts:
        report.not_measured(name, bound="<= 10 times", why="not with --quick")
        return

    def mean_ms(count: int) -> float:
        rows = [ms for shape, row in measured.items() if shape.hosts == count for ms in row]
        return sum(rows) / len(rows)

    report.require(name, mean_ms(1000) / mean_ms(100), unit="times", at_most=10.0)


async def _reading(report: Report, hosts: Sequence[int], reads: int) -> None:
    """The second column: the fleet read, then the decision."""
    with postgres() as url:
        for count in hosts:
            shape = FleetShape(hosts=count, models=10_000, load=0.95)
            snapshot, zipf = make_fleet(shape, Random(SEED))
            fill(url, snapshot, zipf.models)
            await _read_and_decide(report, url, shape, zipf, reads)


async def _read_and_decide(report: Report, url: str, shape: FleetShape, zipf: Zipf, reads: int) -> None:
    database = Database(url)
    read_ms, both_ms = [], []
    try:
        # The first two of a connection prepare their statements.
        for number, request in enumerate(make_requests(zipf, reads + 2)):
            began_s = time.perf_counter()
            async with database.session() as session:
                view = await read_fleet(session, model=request.model.name, now_unix_s=time.time())
            read_s = time.perf_counter() - began_s
            decide(StartRequest(view.wanted.model, deadline_s=300.0), view.snapshot)
            if number >= 2:
                read_ms.append(read_s * 1000)
                both_ms.append((time.perf_counter() - began_s) * 1000)
    finally:
        await database.close()
    report.add(f"{shape.name}: read from Postgres", read_ms, unit="ms")
    report.add(f"{shape.name}: read from Postgres and decide", both_ms, unit="ms")


if __name__ == "__main__":
    main()

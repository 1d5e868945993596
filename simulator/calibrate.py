"""The simulator beside a real `firstlight up`: the same short trace on both, start-up latencies side by side.

    python -m simulator.calibrate [--json FILE] [--requests N] [--blocks N] [--rounds N] [--source URI]

The trace runs on the platform in blocks. Before and after each of them a few starts from each tier are
measured, one at a time; what they take is all that the simulator is told of the machine, for that block: one
that others share is another machine after some minutes. Exit code 1: p50 or p95 differ by more than a fifth.
On a machine that does other work meanwhile both say little.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import Progress

from benchmarks.cold_start import demo_source
from benchmarks.platform import Platform
from benchmarks.report import Report, quantile, wide_console
from simulator.calibration import Measured, blocks_of, scenario_of, startup_s, trace_of
from simulator.calibration_platform import RealFleet
from simulator.entities import Request
from simulator.running import play
from simulator.workload import models_of

MODELS = 3
# Short, so that most requests of the trace need a start.
KEEP_ALIVE_S = 1.0
SIMULATED = 20
# Starts of each model before the simulated trace, and seconds between them.
LEAD_IN = 4
LEAD_GAP_S = 20.0
WITHIN = 0.2


def main() -> int:
    arguments = _arguments()
    trace = trace_of(
        arguments.requests, models=MODELS, mean_gap_s=arguments.gap, random=Random(arguments.seed)
    )
    env = {
        "FIRSTLIGHT_HOST_IDS": "host-a,host-b",
        "FIRSTLIGHT_GPUS_PER_HOST": "1",
        "FIRSTLIGHT_KEEP_ALIVE_POLICY": "fixed",
        "FIRSTLIGHT_PREFETCH_BYTES": "0",
        "FIRSTLIGHT_LOG_LEVEL": "WARNING",
    }
    with Platform(arguments.state_dir.resolve(), env=env) as platform, Progress(transient=True) as progress:
        fleet = RealFleet(platform, models=MODELS, keep_alive_s=KEEP_ALIVE_S, progress=progress)
        fleet.deploy(arguments.source)
        began_unix_s = time.time()
        played = _play(fleet, trace, arguments)
        starts = [row for row in fleet.starts(began_unix_s) if _falls_into(row, played)]
    simulated = [request for block in played for request in _simulated(block.measured, block.trace)]
    real_s = [one for block in played for one in block.real_s]
    report = _report(played, real_s, [_startup_s(request) for request in simulated])
    # Where the starts came from, on either side: what differs there no noise explains.
    real_from = Counter(str(start["tier"]) for start in starts)
    simulated_from = Counter(str(one.start_tier) for one in simulated if one.start_tier is not None)
    report.notes.append(f"real starts by tier: {_shares(real_from)}; simulated: {_shares(simulated_from)}")
    report.trials += [{"starts": starts, "startup_s": real_s}]
    report.print_rows()
    for block in played:
        wide_console().print(block.measured.sentence())
    report.print_reach()
    if arguments.json:
        report.write(arguments.json)
    return 1 if report.has_failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument("--requests", type=int, default=60, help="length of the trace (default 60)")
    parser.add_argument("--blocks", type=int, default=4, help="parts it is played in (default 4)")
    parser.add_argument("--gap", type=float, default=6.0, help="mean seconds between requests (default 6)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="starts measured from each tier at a time (default 3)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", default=demo_source(), help="checkpoint (default: SmolLM2's GGUF)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(".firstlight/benchmarks/calibrate"),
        help="kept between runs, so that models are converted once",
    )
    return parser.parse_args()


def _shares(counted: Counter[str]) -> str:
    return (
        ", ".join(f"{tier} {count / counted.total():.0%}" for tier, count in sorted(counted.items()))
        or "none"
    )


@dataclass(frozen=True, slots=True)
class Played:
    """A part of the trace on the real platform, and what the machine was like around it."""

    trace: Sequence[tuple[float, int]]
    measured: Measured
    real_s: Sequence[float]
    began_unix_s: float
    ended_unix_s: float


def _play(
    fleet: RealFleet, trace: Sequence[tuple[float, int]], arguments: argparse.Namespace
) -> list[Played]:
    found = []
    before = fleet.measure(arguments.rounds, rest_s=arguments.gap)
    for block in blocks_of(trace, arguments.blocks):
        began_unix_s = time.time()
        ttft_s = fleet.replay(block)
        ended_unix_s = time.time()
        after = fleet.measure(arguments.rounds, rest_s=arguments.gap)
        measured, before = before.joined(after), after
        real_s = [startup_s(one, measured.warm_s) for one in ttft_s]
        found.append(Played(block, measured, real_s, began_unix_s, ended_unix_s))
    return found


# Any: a JSON object.
def _falls_into(start: dict[str, Any], played: Sequence[Played]) -> bool:
    return any(one.began_unix_s <= start["decided_at_unix_s"] <= one.ended_unix_s for one in played)


def _simulated(measured: Measured, trace: Sequence[tuple[float, int]]) -> list[Request]:
    """The requests of the trace, played under several draws of the measured noise.

    Each model has started a few times before, as on the platform: its starts are not estimated by priors.
    """
    begin_s = LEAD_IN * MODELS * LEAD_GAP_S
    lead_in = [(step * LEAD_GAP_S, step % MODELS) for step in range(LEAD_IN * MODELS)]
    arrivals = [*lead_in, *((begin_s + at_s, model) for at_s, model in trace)]
    scenario = scenario_of(measured, models=MODELS, keep_alive_s=KEEP_ALIVE_S, duration_s=arrivals[-1][0] + 1)
    models = models_of(scenario)
    found: list[Request] = []
    for seed in range(SIMULATED):
        requests = [
            Request(index, models[model], at_s, measured.prompt_tokens, measured.output_tokens)
            for index, (at_s, model) in enumerate(arrivals)
        ]
        play(scenario, "firstlight", models, requests, seed, dram_dropped_at_s=begin_s - LEAD_GAP_S / 2)
        found += requests[len(lead_in) :]
    return found


def _startup_s(request: Request) -> float:
    """Counted as the real ones are: what a warm request's first token does not take."""
    assert request.first_token_s is not None, "no request of the trace times out"
    return startup_s(
        request.first_token_s - request.arrival_s, [request.model.prefill_s(request.prompt_tokens)]
    )


def _report(played: Sequence[Played], real_s: Sequence[float], simulated_s: Sequence[float]) -> Report:
    report = Report("simulator beside a real platform")
    for what, rows in (
        ("a start from dram", [one.measured.dram_s for one in played]),
        ("a start from ssd", [one.measured.ssd_s for one in played]),
        ("a start from dram beside another", [one.measured.beside_s for one in played]),
        ("a start from dram soon after another", [one.measured.after_s for one in played]),
        ("a warm request's first token", [one.measured.warm_s for one in played]),
    ):
        report.add(f"measured: {what}", [1e3 * one for some in rows for one in some], unit="ms")
    report.add("start-up latency, real", [1e3 * one for one in real_s], unit="ms")
    report.add("start-up latency, simulated", [1e3 * one for one in simulated_s], unit="ms")
    for share in (0.50, 0.95):
        real, simulated = quantile(real_s, share), quantile(simulated_s, share)
        report.notes.append(
            f"p{share * 100:.0f}: real {real * 1e3:.0f} ms, simulated {simulated * 1e3:.0f} ms"
        )
        report.require(
            f"start-up latency p{share * 100:.0f}, |simulated − real| / real",
            abs(simulated - real) / real if real else float(simulated > 0),
            unit="",
            at_most=WITHIN,
        )
    return report


if __name__ == "__main__":
    raise SystemExit(main())

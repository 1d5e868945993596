"""The API's warm path under 1 to 256 streams, beside its engines called directly and beside
`transformers serve`; streams that wait for a start; and crowds past every limit.

    python -m benchmarks.api [--quick] [--json FILE] [--plot FILE.png] [--levels 1,8,64,256] [--parts LIST]

One run on one machine, same weights, same prompts, greedy; that both servers answer alike is checked. Our
engines get a core each, `transformers serve` all cores. Added latency is measured with requests through the
API and past it in turn, so that both meet the same engines under the same load.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import uvloop
from rich.progress import Progress

from benchmarks.api_bench import DIRECT, OURS, TOKENS, Bench, Pace, Showing, texts_of
from benchmarks.api_figures import Found, summarise
from benchmarks.api_load import HttpAsker, drive
from benchmarks.api_overload import drive_past_limits, wait_for_a_start
from benchmarks.api_peer import Peer
from benchmarks.api_plot import plot
from benchmarks.cold_start import demo_source
from benchmarks.platform import Platform, PlatformFailed
from benchmarks.report import Report

FULL = Pace(levels=(1, 8, 64, 256), window_s=20.0, rounds=100, idle_streams=1000, crowd=2000)
QUICK = Pace(levels=(1, 8), window_s=3.0, rounds=25, idle_streams=200, crowd=400)
PARTS = ("throughput", "latency", "idle", "overload")


def main() -> int:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    arguments = _arguments()
    pace = QUICK if arguments.quick else FULL.at(arguments.levels, window_s=arguments.window_s)
    report, found = Report("API"), Found()
    with Progress(transient=True) as progress:
        _measure(found, pace, arguments.parts, arguments.source, arguments.state_dir.resolve(), progress)
    summarise(report, found)
    report.print()
    if arguments.json:
        report.write(arguments.json)
    if arguments.plot:
        plot(found.levels, arguments.plot)
    return 1 if report.has_failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument("--plot", type=Path, help="draw throughput there (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="two levels, small crowds: about a minute")
    parser.add_argument("--levels", type=_numbers, default=FULL.levels, help="streams at a time")
    parser.add_argument(
        "--window-s", type=float, default=FULL.window_s, help="of a level (more at many streams)"
    )
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"of {','.join(PARTS)}")
    parser.add_argument("--source", default=demo_source(), help="checkpoint (default: SmolLM2's GGUF)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(".firstlight/benchmarks/api"),
        help="kept between runs, so that the model is converted once for each of two fleets",
    )
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part in PARTS)


def _measure(
    found: Found, pace: Pace, parts: Sequence[str], source: str, state_dir: Path, progress: Progress
) -> None:
    exported = state_dir / "exported"
    if {"throughput", "latency", "idle"} & set(parts):
        with Platform(state_dir / "warm", env=_environment(pace)) as platform:
            bench = Bench(platform, source, progress, instances=os.cpu_count() or 1)
            _measure_ours(found, pace, parts, bench)
            if "throughput" in parts:
                found.texts = asyncio.run(bench.texts())
                bench.export(state_dir / "warm", exported)
            if "idle" in parts:
                with Showing(progress, f"{pace.idle_streams} streams that wait for a start"):
                    file = Path(url2pathname(urlsplit(source).path))
                    found.waiting = asyncio.run(wait_for_a_start(platform, file, streams=pace.idle_streams))
    if "throughput" in parts:
        for is_batching in (True, False):
            _measure_peer(found, pace, exported, bench.prompts, progress, is_batching=is_batching)
    if "overload" in parts:
        with Showing(progress, "crowds past every limit"):
            found.crowds = drive_past_limits(source=source, state_dir=state_dir / "crowds", crowd=pace.crowd)


def _environment(pace: Pace) -> dict[str, str]:
    return {
        "FIRSTLIGHT_HOST_IDS": "host-a",
        # One for each core, one for pairs of requests, one for the model whose start is waited for.
        "FIRSTLIGHT_GPUS_PER_HOST": str((os.cpu_count() or 1) + 2),
        "FIRSTLIGHT_MAX_QUEUE_PER_MODEL": str(max(1024, 2 * pace.idle_streams)),
        "FIRSTLIGHT_LOG_LEVEL": "WARNING",
    }


def _measure_ours(found: Found, pace: Pace, parts: Sequence[str], bench: Bench) -> None:
    if "throughput" in parts:
        for number, streams in enumerate(pace.levels):
            # Which one is first changes from level to level.
            for way in (OURS, DIRECT) if number % 2 else (DIRECT, OURS):
                found.levels.setdefault(way, []).append(bench.measure(way, pace, streams))
    if "latency" in parts:
        with bench.showing("added latency at 8 streams"):
            found.added = asyncio.run(bench.added(pace.rounds))


def _measure_peer(
    found: Found,
    pace: Pace,
    exported: Path,
    prompts: Sequence[str],
    progress: Progress,
    *,
    is_batching: bool,
) -> None:
    with Peer(exported, is_batching=is_batching) as peer:
        theirs = asyncio.run(texts_of(peer.url, peer.model, prompts[: len(found.texts)]))
        if theirs != found.texts:
            raise PlatformFailed(f"{peer.name} answers otherwise: {theirs!r}, not {found.texts!r}")
        for streams in pace.levels:
            with Showing(progress, f"{peer.name}: {streams} streams"):
                level = asyncio.run(
                    drive(
                        lambda number: HttpAsker(peer.url, peer.model, prompts),
                        streams=streams,
                        tokens=TOKENS,
                        warm_s=pace.warm_s(streams),
                        window_s=pace.window_of(streams),
                    )
                )
            found.levels.setdefault(peer.name, []).append(level)


if __name__ == "__main__":
    raise SystemExit(main())

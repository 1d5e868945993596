"""Live migration of running requests between two hosts, beside stopping them and starting over.

    python -m benchmarks.migration [--quick] [--json FILE] [--plot FILE.png] [--prompts gsm8k_test.jsonl]
                                   [--lengths 64,256,1024] [--migrations N]

In one run with the demo model: for every length (prompt and output together) one stream that is moved in its
midst and the same stream undisturbed; then many migrations in a row under streams that never stop. Every
token of every stream is compared with the undisturbed one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from rich.progress import Progress

from benchmarks.cold_start import demo_source
from benchmarks.migration_client import Asked, Heard, Prompts, Stream, read_questions
from benchmarks.platform import Platform, PlatformFailed
from benchmarks.report import Report
from firstlight.rpc import engine_pb2, engine_pb2_grpc, store_pb2, store_pb2_grpc

MODEL = "bench-migration"
LENGTHS = (64, 128, 256, 512, 1024, 2048)
QUICK_LENGTHS = (64, 128)
# What is left to send when a request is handed over; the pause may hold one prefill of so many tokens.
DELTA_TOKENS = 16
# Of the streams that never stop: some end often, some are moved dozens of times and grow long.
STREAM_TOKENS = (64, 256, 768)
# Estimates are judged once they have seen this many moves.
LEARNING = 10


@dataclass(frozen=True, slots=True)
class Moved:
    """One stream that was moved in its midst, its undisturbed twin, and the migration's record."""

    length: int
    undisturbed: Heard
    disturbed: Heard
    # When the move was asked for and when its source had ended (monotonic).
    window: tuple[float, float]
    # Any: the migration as the admin API tells it.
    record: dict[str, Any]

    @property
    def pause_s(self) -> float:
        """The longest gap while it was on its way."""
        return max(self.disturbed.gaps_between(*self.window))

    @property
    def again_s(self) -> float:
        """What stopping and starting over computes twice: all from the prompt to where it was handed over."""
        [tokens] = [one["tokens"] for one in self.record["observations"]]
        generated = min(len(self.undisturbed.at_s), max(1, int(tokens) - self.length // 2))
        return self.undisturbed.at_s[generated - 1] - self.undisturbed.asked_s


def main() -> int:
    arguments = _arguments()
    lengths = QUICK_LENGTHS if arguments.quick else arguments.lengths
    migrations = 4 if arguments.quick else arguments.migrations
    report = Report("live migration")
    env = {
        "FIRSTLIGHT_HOST_IDS": "host-a,host-b",
        "FIRSTLIGHT_GPUS_PER_HOST": "2",
        "FIRSTLIGHT_LOG_LEVEL": "WARNING",
    }
    with Platform(arguments.state_dir.resolve(), env=env) as platform, Progress(transient=True) as progress:
        bench = Bench(platform, arguments.source, read_questions(arguments.prompts), progress)
        prefill_s = bench.prefill_of_delta()
        moved = [bench.move_one(length) for length in lengths]
        series = bench.move_many(migrations)
        leaks = bench.leaks()
    _summarise(report, moved, series, leaks, prefill_s=prefill_s)
    report.print()
    if arguments.json:
        report.write(arguments.json)
    if arguments.plot:
        _plot(moved, arguments.plot)
    return 1 if report.has_failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument("--plot", type=Path, help="draw the pauses there (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="two lengths and four migrations in a row")
    parser.add_argument("--prompts", type=Path, help="JSONL with a `question` a line (GSM8K)")
    parser.add_argument(
        "--lengths",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        default=LENGTHS,
        help="prompt and output tokens together",
    )
    parser.add_argument("--migrations", type=int, default=1000, help="in a row (default 1000)")
    parser.add_argument("--source", default=demo_source(), help="checkpoint (default: SmolLM2's GGUF)")
    parser.add_argument("--state-dir", type=Path, default=Path(".firstlight/benchmarks/migration"))
    return parser.parse_args()


@dataclass(slots=True)
class Series:
    """Migrations in a row under streams that never stop."""

    records: list[dict[str, Any]]
    streams: int
    changed: int
    broken: int
    gaps_ms: list[float]
    # Each stream's longest gap, and its own median gap, seconds.
    longest: list[tuple[float, float]] = field(default_factory=list)
    # When each migration was asked for and when its source had ended (monotonic).
    windows: list[tuple[float, float]] = field(default_factory=list)
    # Of each stream under way in each migration: its longest gap meanwhile, and its own median gap, seconds.
    pauses: list[tuple[float, float]] = field(default_factory=list)


class Bench:
    """The platform with the demo model deployed, and an instance that serves."""

    def __init__(self, platform: Platform, source: str, questions: Sequence[str], progress: Progress) -> None:
        self._platform = platform
        self._progress = progress
        task = progress.add_task("deploy, convert and first start", total=None)
        if MODEL not in {model["id"] for model in platform.get("/v1/models")["data"]}:
            settings = {"keep_alive_s": 3600, "max_concurrency": 8}
            platform.post("/admin/v1/models", {"name": MODEL, "source": source, **settings})
        # The first request starts it; its bytes reach the other host with the first migration.
        self._run(Asked((1, 2, 3), 2, 0.0, 0))
        host = platform.get("/admin/v1/hosts")["hosts"]
        checkpoint_id = platform.get(f"/admin/v1/models/{MODEL}")["checkpoint_id"]
        here = next(one for one in host if one["host_id"] == self._serving()["host_id"])
        self._prompts = Prompts(here["store_address"], checkpoint_id, questions)
        for _ in range(2):
            self._migrate()
        progress.remove_task(task)

    def prefill_of_delta(self) -> float:
        """Seconds to the first token of a prompt of DELTA_TOKENS: one prefill, and the way there."""
        asked = [Asked(self._prompts.of_length(DELTA_TOKENS, start=number), 1, 0.0, 0) for number in range(5)]
        return median(self._run(one).first_token_s for one in asked)

    def move_one(self, length: int) -> Moved:
        task = self._progress.add_task(f"a stream of {length} tokens", total=None)
        asked = Asked(self._prompts.of_length(length // 2), length - length // 2, 0.0, 0)
        undisturbed = self._run(asked)
        stream = self._stream(asked)
        at_token = max(2, asked.max_tokens // 4)
        stream.wait_tokens(at_token)
        began_s = time.monotonic()
        record = self._migrate()
        window = (began_s, time.monotonic())
        disturbed = stream.result()
        self._progress.remove_task(task)
        return Moved(length, undisturbed, disturbed, window, record)

    def move_many(self, count: int) -> Series:
        task = self._progress.add_task("migrations in a row", total=count)
        kinds = [
            Asked(self._prompts.of_length(24, start=7 * n), tokens, 0.7 * (n % 2), n)
            for n, tokens in enumerate(STREAM_TOKENS)
        ]
        expected = [self._run(asked) for asked in kinds]
        series = Series([], 0, 0, 0, [])
        running = [self._stream(asked) for asked in kinds]
        for _ in range(count):
            began_s = time.monotonic()
            series.records.append(self._migrate())
            series.windows.append((began_s, time.monotonic()))
            ended = [slot for slot, one in enumerate(running) if one.heard.finish_reason is not None]
            for slot in ended:
                self._judge(series, running[slot], expected[slot])
                running[slot] = self._stream(kinds[slot])
            # Others wait while a prompt is read: that is no part of a migration's pause.
            for slot in ended:
                running[slot].wait_tokens(2)
            self._progress.advance(task)
        for slot, stream in enumerate(running):
            self._judge(series, stream, expected[slot])
        self._progress.remove_task(task)
        return series

    def _judge(self, series: Series, stream: Stream, expected: Heard) -> None:
        series.streams += 1
        try:
            heard = stream.result()
        except PlatformFailed:
            series.broken += 1
            return
        series.changed += not heard.is_same_as(expected)
        gaps_s = heard.gaps_s()
        series.gaps_ms += [gap * 1e3 for gap in gaps_s]
        series.longest.append((max(gaps_s), median(gaps_s)))
        for began_s, ended_s in series.windows:
            meanwhile = heard.gaps_between(began_s, ended_s)
            if meanwhile:
                series.pauses.append((max(meanwhile), median(gaps_s)))

    def leaks(self) -> dict[str, int]:
        """What is left over when nothing moves: GPUs, pins and sessions beyond those of the one instance."""
        self._platform.wait_for(lambda: len(self._live()) == 1, what="sources to end", deadline_s=60)
        instance = self._serving()
        hosts = self._platform.get("/admin/v1/hosts")["hosts"]
        held = sum(gpu["instance_id"] is not None for host in hosts for gpu in host["gpus"])
        pins = 0
        for host in hosts:
            with grpc.insecure_channel(host["store_address"]) as channel:
                inventory = store_pb2_grpc.StoreStub(channel).Inventory(store_pb2.InventoryRequest())
            pins += sum(row.pins for row in inventory.checkpoints)
        with grpc.insecure_channel(instance["endpoint"]) as channel:
            status = engine_pb2_grpc.InferenceStub(channel).Status(engine_pb2.EngineStatusRequest())
        running = [row for row in self._records() if row["state"] == "running"]
        return {
            "GPUs": held - 1,
            "pins": pins - 1,
            "sessions": status.sessions,
            "requests": status.running + status.waiting,
            "migrations still running": len(running),
        }

    def _stream(self, asked: Asked) -> Stream:
        return Stream(self._platform.api_url, MODEL, asked)

    def _run(self, asked: Asked) -> Heard:
        return self._stream(asked).result()

    def _live(self) -> list[dict[str, Any]]:
        rows = self._platform.get(f"/admin/v1/instances?model={MODEL}&ended=0")["instances"]
        return [row for row in rows if row["state"] in ("starting", "ready", "draining")]

    def _serving(self) -> dict[str, Any]:
        return next(row for row in self._live() if row["state"] == "ready")

    def _records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._platform.get("/admin/v1/migrations?limit=5")["migrations"]
        return found

    def _migrate(self) -> dict[str, Any]:
        """Move the instance that serves, and wait until its source has ended. The migration's record."""
        source = self._serving()
        begun = self._platform.post(f"/admin/v1/instances/{source['instance_id']}/migrate")
        found: list[dict[str, Any]] = []

        def has_ended() -> bool:
            found[:] = [
                row
                for row in self._records()
                if row["migration_id"] == begun["migration_id"] and row["state"] != "running"
            ]
            return bool(found)

        self._platform.wait_for(has_ended, what=begun["migration_id"], deadline_s=120)
        if found[0]["state"] != "completed":
            raise PlatformFailed(f"{begun['migration_id']} {found[0]['state']}: {found[0]['failure']}")
        self._platform.wait_for(
            lambda: len(self._live()) == 1, what="the source to give its GPU back", deadline_s=60
        )
        return found[0]


def _summarise(
    report: Report, moved: Sequence[Moved], series: Series, leaks: dict[str, int], *, prefill_s: float
) -> None:
    for one in moved:
        name = f"{one.length} tokens"
        record = one.record
        report.add(f"{name}: destination started", [record["start_s"] * 1e3], unit="ms")
        report.add(f"{name}: requests moved", [record["move_s"] * 1e3], unit="ms")
        report.add(f"{name}: rounds", [float(record["rounds"])], unit="rounds")
        report.add(f"{name}: tokens sent", [float(record["tokens_moved"])], unit="tokens")
        report.add(f"{name}: bytes sent", [record["bytes_moved"] / 1e6], unit="MB")
        report.add(f"{name}: still at the source", [record["pause_s"] * 1e3], unit="ms")
        report.add(f"{name}: pause the client sees", [one.pause_s * 1e3], unit="ms")
        report.add(f"{name}: its own median gap", [one.disturbed.median_gap_s() * 1e3], unit="ms")
        report.add(f"{name}: computed again if stopped and started over", [one.again_s * 1e3], unit="ms")
    report.add("one prefill of the last tokens", [prefill_s * 1e3], unit="ms")
    for name in ("start_s", "move_s", "pause_s"):
        values = [row[name] * 1e3 for row in series.records]
        report.add(f"in a row: {name.removesuffix('_s')}", values, unit="ms")
    report.add("in a row: pause the client sees", [pause * 1e3 for pause, _ in series.pauses], unit="ms")
    report.add(
        "in a row: a stream's longest gap", [longest * 1e3 for longest, _ in series.longest], unit="ms"
    )
    _reach(report, moved, series, leaks, prefill_s)


def _reach(
    report: Report, moved: Sequence[Moved], series: Series, leaks: dict[str, int], prefill_s: float
) -> None:
    pauses = [one.pause_s / (3 * one.disturbed.median_gap_s() + prefill_s) for one in moved]
    report.require(
        "longest pause, of three median gaps and one prefill", max(pauses), unit="of the bound", at_most=1.0
    )
    in_a_row = sorted(pause / (3 * own + prefill_s) for pause, own in series.pauses)
    p99 = in_a_row[min(len(in_a_row) - 1, int(0.99 * len(in_a_row)))]
    report.require("in a row: pause at p99, of the same bound", p99, unit="of the bound", at_most=1.0)
    wasted = sum(one.record["move_s"] for one in moved) / sum(one.again_s for one in moved)
    report.require("moving, of what starting over computes again", wasted, unit="", at_most=0.15)
    changed = sum(not one.disturbed.is_same_as(one.undisturbed) for one in moved) + series.changed
    report.require("streams changed by a migration", float(changed), unit="streams", at_most=0)
    report.require("streams broken by a migration", float(series.broken), unit="streams", at_most=0)
    report.require("migrations in a row", float(len(series.records)), unit="migrations", at_least=1000)
    report.require("left over: " + ", ".join(leaks), float(sum(map(abs, leaks.values()))), unit="", at_most=0)
    errors = _estimate_errors([*(one.record for one in moved), *series.records])
    if errors:
        report.require("estimate of a move, median error", median(errors), unit="of actual", at_most=0.15)
    moves = sum(row["requests_moved"] for row in series.records)
    report.notes.append(
        f"{len(series.records)} migrations in a row moved {moves} requests of {series.streams} streams, "
        f"greedy and sampled; the streams' gaps between tokens: median {median(series.gaps_ms):.0f} ms"
    )


def _estimate_errors(records: Sequence[dict[str, Any]]) -> list[float]:
    """Each move as the fleet itself foretold it from all moves before it; relative to what it took."""
    foretold = [one for one in records if one["predicted_move_s"] is not None and one["move_s"] > 0]
    return [abs(one["predicted_move_s"] - one["move_s"]) / one["move_s"] for one in foretold[LEARNING:]]


def _plot(moved: Sequence[Moved], path: Path) -> None:
    try:
        import matplotlib
    except ImportError as failure:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from failure
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    lengths = [str(one.length) for one in moved]
    axes[0].bar(lengths, [one.pause_s * 1e3 for one in moved], label="pause the client sees")
    axes[0].plot(lengths, [one.disturbed.median_gap_s() * 3e3 for one in moved], "k--", label="3 median gaps")
    axes[0].set(xlabel="prompt and output tokens", ylabel="ms", title="Pause of a migration")
    axes[1].bar(lengths, [one.again_s for one in moved], label="stopped and started over", color="tab:red")
    axes[1].bar(lengths, [one.record["move_s"] for one in moved], label="moved", color="tab:green")
    axes[1].set(xlabel="prompt and output tokens", ylabel="s", yscale="log", title="Work done twice")
    for one in axes:
        one.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    began_s = time.monotonic()
    status = main()
    print(f"took {time.monotonic() - began_s:.0f} s")
    raise SystemExit(status)

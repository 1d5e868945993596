"""From what `benchmarks.api` measured to its report: rows, trials, and figures against their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.api_bench import DIRECT, OURS
from benchmarks.api_crowds import Crowds, Waiting
from benchmarks.api_latency import Added
from benchmarks.api_load import Level
from benchmarks.report import Report

MEGABYTE = 1e6


@dataclass(slots=True)
class Found:
    """All that was measured; what was not is empty."""

    levels: dict[str, list[Level]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    added: Added | None = None
    waiting: Waiting | None = None
    crowds: Crowds | None = None


def summarise(report: Report, found: Found) -> None:
    _throughput(report, found.levels)
    if found.added is not None:
        _latency(report, found.added)
    if found.waiting is not None:
        _waiting(report, found.waiting)
    if found.crowds is not None:
        _crowds(report, found.crowds)


def _throughput(report: Report, levels: Mapping[str, Sequence[Level]]) -> None:
    for way, measured in levels.items():
        for level in measured:
            report.add(f"{way}: requests/s, {level.streams} streams", [level.requests_per_s], unit="1/s")
            firsts = [1e3 * seconds for seconds in level.first_token_s]
            report.add(f"{way}: first token, {level.streams} streams", firsts, unit="ms")
            wholes = [1e3 * seconds for seconds in level.whole_s]
            report.add(f"{way}: whole answer, {level.streams} streams", wholes, unit="ms")
            report.trials.append({"way": way, **level.figures()})
    peers = [measured for way, measured in levels.items() if way not in (OURS, DIRECT)]
    for ours, *theirs in zip(levels.get(OURS, []), *peers, strict=True) if peers else []:
        # Its best: sequential or batching, whichever is more at this level.
        best = max(level.requests_per_s for level in theirs)
        ratio = ours.requests_per_s / best if best else float("inf")
        name = f"throughput of the API / transformers serve's better way, {ours.streams} streams"
        report.require(name, ratio, at_least=1, unit="×")
    for ours, direct in zip(levels.get(OURS, []), levels.get(DIRECT, []), strict=True):
        share = ours.requests_per_s / direct.requests_per_s
        report.notes.append(
            f"{ours.streams} streams: the API passes on {share:.1%} of its engines' throughput"
        )
    broken = [text for measured in levels.values() for level in measured for text in level.broken]
    if levels:
        report.require("broken answers while throughput was measured", len(broken), at_most=0, unit="")
    report.notes += broken[:3]


def _latency(report: Report, added: Added) -> None:
    streams = f"{added.streams} streams"
    report.add(f"first token past the API, {streams}", [1e3 * one for one in added.past_first_s], unit="ms")
    first = report.add(f"added to a first token, {streams}", [1e3 * one for one in added.first_s], unit="ms")
    whole = report.add(f"added to a request, {streams}", [1e3 * one for one in added.whole_s], unit="ms")
    assert first is not None and whole is not None, "there was at least one pair"
    report.require(f"added by the API to a first token, p50, {streams}", first.p50, at_most=3, unit="ms")
    report.require(f"added by the API to a whole request, p50, {streams}", whole.p50, at_most=3, unit="ms")


def _waiting(report: Report, waiting: Waiting) -> None:
    report.require(
        f"memory of the API with {waiting.streams} streams that wait for a start, all of it",
        waiting.after_bytes / MEGABYTE,
        at_most=500,
        unit="MB",
    )
    report.require(
        f"memory the API grew by for {waiting.streams} streams that wait for a start",
        waiting.grown_bytes / MEGABYTE,
        at_most=500 * waiting.streams / 1000,
        unit="MB",
    )
    report.notes.append(
        f"waiting streams: {waiting.before_bytes / MEGABYTE:.0f} MB before, "
        f"{waiting.after_bytes / MEGABYTE:.0f} MB with {waiting.streams} of them, "
        f"{waiting.left_bytes / MEGABYTE:.0f} MB when they had left; {waiting.signs} signs of life"
    )


def _crowds(report: Report, crowds: Crowds) -> None:
    for tally in crowds.tallies:
        ends = ", ".join(f"{count} × {end}" for end, count in tally.ends.most_common(5))
        report.notes.append(f"{tally.name}: {tally.asked} requests in {tally.seconds:.1f} s: {ends}")
    wrong = sum(len(tally.wrong) for tally in crowds.tallies)
    report.require(
        "answers at overload that are neither served nor 429/503 with Retry-After", wrong, at_most=0, unit=""
    )
    report.require("streams changed by a crowd beside them", crowds.changed, at_most=0, unit="")
    report.trials += [
        {"crowd": one.name, "asked": one.asked, "seconds": one.seconds, "ends": dict(one.ends)}
        for one in crowds.tallies
    ]

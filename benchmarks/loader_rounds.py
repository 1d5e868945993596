"""Rounds: every way once in each, the order turned by one from round to round, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from benchmarks import loader_page_cache as page_cache
from benchmarks.loader_files import BenchmarkFiles
from benchmarks.loader_limit import Limit
from benchmarks.loader_pressure import pressure
from benchmarks.loader_store import BenchmarkStore
from benchmarks.loader_trial import Taken
from benchmarks.loader_ways import Way

PATIENCE_S = 600.0
LIMIT = "limit"


class TrialFailed(RuntimeError):
    """A load ended with an error, or with other bytes than were saved."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One load. `state` is what was asked of the caches before: cold, warm, or pressed."""

    way: str
    state: str
    round: int
    taken: Taken

    # Any: JSON.
    def record(self) -> dict[str, Any]:
        return {"way": self.way, "state": self.state, "round": self.round, **asdict(self.taken)}


@dataclass(frozen=True, slots=True)
class LimitTrial:
    """The limit's rate in one round, bytes a second, and its CPU seconds a byte."""

    round: int
    bytes_per_s: float
    cpu_s_per_byte: float


@dataclass(slots=True)
class Bench:
    """What trials run with; without a store, only ways that need none."""

    files: BenchmarkFiles
    store: BenchmarkStore | None
    limit: Limit

    def trial(self, way: Way, state: str, number: int, settle: Callable[[Way], None]) -> Trial:
        """Put the caches into their state by `settle`, start the process, see that they still are, load.

        Not only after the start: a virtual machine that takes gigabytes for its page cache may lose how its
        host maps all other memory, and the next touch of each page then takes microseconds (docs/log.md).
        What a process touches while it is prepared is mapped again. Raises: TrialFailed.
        """
        self._settle(way, settle)
        with _waiting(way, self) as process:
            # An import may have disturbed them.
            self._settle(way, settle)
            output, complaint = process.communicate("go\n", timeout=PATIENCE_S)
        try:
            record = json.loads(output)
        except ValueError:
            raise TrialFailed(f"{way.name}, {state}: {complaint[-2000:]}") from None
        taken = Taken(**{**record, "wrong": tuple(record["wrong"])})
        if taken.wrong:
            raise TrialFailed(f"{way.name}, {state}: other bytes than were saved in {', '.join(taken.wrong)}")
        return Trial(way.name, state, number, taken)

    def _settle(self, way: Way, settle: Callable[[Way], None]) -> None:
        if self.store and way.store == "ssd":
            self.store.make_cold()
        elif self.store and way.store == "dram":
            self.store.make_warm()
        settle(way)

    def limit_trial(self, number: int) -> LimitTrial:
        page_cache.drop([self.files.partition])
        reading = self.limit.read(self.files.partition)
        rate = reading.size_bytes / reading.seconds
        return LimitTrial(number, rate, reading.cpu_s / reading.size_bytes)

    def drop(self, way: Way) -> None:
        page_cache.drop(way.reads(self.files))

    def warm(self, way: Way) -> None:
        page_cache.warm(way.reads(self.files))


def rotated(ways: Sequence[Way], number: int) -> list[Way]:
    """Another goes first in each round."""
    turn = number % len(ways)
    return [*ways[turn:], *ways[:turn]]


def cold_round(
    bench: Bench, ways: Sequence[Way], number: int, beside: Way | None = None
) -> Iterator[tuple[Trial, LimitTrial | None]]:
    """The limit is read right before and right after `beside`: a device's rate drifts within minutes.

    Without `beside` it is not read.
    """
    for way in rotated(ways, number):
        if way is not beside:
            yield bench.trial(way, "cold", number, bench.drop), None
            continue
        before = bench.limit_trial(number)
        trial = bench.trial(way, "cold", number, bench.drop)
        after = bench.limit_trial(number)
        rate = mean((before.bytes_per_s, after.bytes_per_s))
        yield trial, LimitTrial(number, rate, mean((before.cpu_s_per_byte, after.cpu_s_per_byte)))


def warm_round(
    bench: Bench, ways: Sequence[Way], number: int, pressed: Sequence[Way], kind: str
) -> Iterator[Trial]:
    """Each way warm; those of `pressed` right behind once more under memory pressure of that kind."""
    for way in rotated(ways, number):
        yield bench.trial(way, "warm", number, bench.warm)
        if way in pressed:
            # For each load anew: the one before has read its files back into the page cache.
            with pressure(kind, way.reads(bench.files)):
                trial = bench.trial(way, "pressed", number, lambda _: None)
            yield trial


@contextmanager
def _waiting(way: Way, bench: Bench) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything and waits for its line."""
    command = [sys.executable, "-m", "benchmarks.loader_trial", way.name, str(bench.files.directory)]
    if bench.store is not None:
        command.append(str(bench.store.address_file))
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            _, complaint = process.communicate(timeout=PATIENCE_S)
            raise TrialFailed(f"{way.name} could not be prepared: {complaint[-2000:]}")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

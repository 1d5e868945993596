"""Rows, and figures held against their bounds: medians of ratios taken within one round each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.loader_limit import Limit
from benchmarks.loader_rounds import LIMIT, LimitTrial, Trial
from benchmarks.loader_trial import Taken
from benchmarks.loader_ways import Way
from benchmarks.report import Report

GB = 1e9
STATES = ("cold", "warm", "pressed")
# What a start does with a checkpoint on SSD, and with one in the pool.
COLD, WARM = "store-ssd-model", "store-dram-model"
# Pressure may cost ours no more than this: milliseconds of a busy machine, not gigabytes read again.
UNCHANGED = 1.25


@dataclass(slots=True)
class Measured:
    """All trials of one run. `read_bytes` is the size of the file that the limit reads."""

    ways: Mapping[str, Way]
    size_bytes: int
    read_bytes: int
    trials: list[Trial] = field(default_factory=list)
    limits: list[LimitTrial] = field(default_factory=list)

    def of(self, way: str, state: str) -> list[Trial]:
        return [trial for trial in self.trials if (trial.way, trial.state) == (way, state)]

    def values(self, way: str, state: str, value: Callable[[Taken], float]) -> dict[int, float]:
        """By round."""
        return {trial.round: value(trial.taken) for trial in self.of(way, state)}

    def names(self, state: str, *, ours: bool) -> list[str]:
        measured = {trial.way for trial in self.trials if trial.state == state}
        return [name for name, way in self.ways.items() if name in measured and way.is_ours == ours]

    def of_state(self, state: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == state]

    def limit_s(self, number: int) -> float:
        """What the limit took for the same file in that round."""
        return self.read_bytes / next(one.bytes_per_s for one in self.limits if one.round == number)

    def cpu_s_per_gb(self, way: str, state: str) -> dict[int, float]:
        return self.values(way, state, lambda taken: taken.resident_cpu_s / self.size_bytes * GB)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """first / second, round by round, where both are."""
    return [first[number] / second[number] for number in first if number in second]


def summarise(report: Report, measured: Measured, limit: Limit) -> None:
    """Every row, every figure of the loader that this machine can take, and each trial as it was."""
    seconds = [measured.limit_s(one.round) * 1e3 for one in measured.limits]
    report.add(f"limit: {limit}", seconds, unit="ms")
    report.add("limit", [one.bytes_per_s / GB for one in measured.limits], unit="GB/s")
    for state in STATES:
        for name in (*measured.names(state, ours=True), *measured.names(state, ours=False)):
            _add_rows(report, measured, name, state)
    _reach_cold(report, measured, limit)
    _reach_warm(report, measured)
    _reach_pressed(report, measured)
    report.trials += [trial.record() for trial in measured.trials]
    report.trials += [
        {"way": LIMIT, "state": "cold", "round": one.round, "bytes_per_s": one.bytes_per_s}
        for one in measured.limits
    ]


def _add_rows(report: Report, measured: Measured, name: str, state: str) -> None:
    title = f"{state} · {measured.ways[name].title}"
    trials = measured.of(name, state)
    for what, value in (("returned", "returned_s"), ("resident", "resident_s"), ("checksummed", "checked_s")):
        report.add(f"{title} · {what}", [getattr(one.taken, value) * 1e3 for one in trials], unit="ms")
    cpu = measured.cpu_s_per_gb(name, state)
    report.add(f"{title} · CPU to resident", list(cpu.values()), unit="s/GB")
    peaks = [one.taken.peak_bytes / 2**20 for one in trials]
    report.add(f"{title} · peak memory", peaks, unit="MiB")
    shared = [one.taken.shared_bytes / 2**20 for one in trials]
    report.add(f"{title} · of it shared", shared, unit="MiB")


def _returned(taken: Taken) -> float:
    return taken.returned_s


def _resident(taken: Taken) -> float:
    return taken.resident_s


def _checked(taken: Taken) -> float:
    return taken.checked_s


def _reach_cold(report: Report, measured: Measured, limit: Limit) -> None:
    ours = measured.values(COLD, "cold", _returned)
    if not ours:
        return
    by = "fio" if limit.fio else "the limit (not fio)"
    limits = {one.round: measured.limit_s(one.round) for one in measured.limits}
    shares = paired(limits, ours)
    report.add("cold store: share of the limit's rate, paired", shares, unit="ratio")
    for name in ("store-ssd", "library", "library-safetensors", "pool"):
        share = paired(limits, measured.values(name, "cold", _returned))
        report.add(f"cold {name}: share of the limit's rate, paired", share, unit="ratio")
    if shares:
        report.require(f"cold SSD → returned, rate / {by}", median(shares), at_least=0.95, unit="×")
    _reach_cpu(report, measured)
    _reach_ahead(report, measured, "cold", COLD, _resident, "cold SSD → resident")


def _reach_cpu(report: Report, measured: Measured) -> None:
    """The CPU of store and reader, less what the store's threads say that their checksums took."""

    def per_gb(value: Callable[[Taken], float]) -> list[float]:
        return [found / measured.size_bytes * GB for found in measured.values(COLD, "cold", value).values()]

    rest = per_gb(lambda taken: taken.returned_cpu_s - taken.checksum_cpu_s)
    report.add("cold store: CPU to returned, checksums", per_gb(_checksums), unit="s/GB")
    report.add("cold store: CPU to returned, besides checksums", rest, unit="s/GB")
    if rest:
        report.require("cold SSD → returned, CPU besides checksums", median(rest), at_most=0.02, unit="s/GB")


def _checksums(taken: Taken) -> float:
    return taken.checksum_cpu_s


def _compare(
    report: Report, measured: Measured, state: str, ours: str, value: Callable[[Taken], float], what: str
) -> dict[str, list[float]]:
    """Every peer's time over ours, paired: rows, and the ratios by peer."""
    own = measured.values(ours, state, value)
    ratios = {
        peer: paired(measured.values(peer, state, value), own) for peer in measured.names(state, ours=False)
    }
    for peer, found in ratios.items():
        report.add(f"{what}: {measured.ways[peer].title} / ours, paired", found, unit="×")
    return {peer: found for peer, found in ratios.items() if found}


def _reach_ahead(
    report: Report,
    measured: Measured,
    state: str,
    ours: str,
    value: Callable[[Taken], float],
    what: str,
    *,
    times: float = 1.0,
) -> None:
    """The nearest peer's time over ours must be at least `times`."""
    ratios = _compare(report, measured, state, ours, value, what)
    if not ratios:
        report.not_measured(f"{what}: nearest peer / ours", bound=f">= {times:g} ×", why="no peer measured")
        return
    nearest = min(ratios, key=lambda peer: median(ratios[peer]))
    label = measured.ways[nearest].label
    report.require(f"{what}: {label} / ours", median(ratios[nearest]), at_least=times, unit="×")


def _reach_warm(report: Report, measured: Measured) -> None:
    model = measured.values(WARM, "warm", _returned)
    if not model:
        return
    report.require("DRAM → bound model, returned", median(model.values()) * 1e3, at_most=10, unit="ms")
    report.notes.append(
        f"DRAM → bound model: a checkpoint of {measured.size_bytes / GB:.2f} GB (the bound is for 2.5), "
        "by a spare engine: connected, the pool mapped, its skeleton prepared, as the platform's are; "
        "'DRAM → state dict' is a fresh reader with nothing at hand"
    )
    _reach_ahead(report, measured, "warm", WARM, _returned, "DRAM → bound model, returned", times=4)
    _compare(report, measured, "warm", "store-dram", _returned, "DRAM → state dict, returned")
    _reach_ahead(report, measured, "warm", WARM, _checked, "DRAM → bound model, checksummed")


def _reach_pressed(report: Report, measured: Measured) -> None:
    for name in (*measured.names("pressed", ours=True), *measured.names("pressed", ours=False)):
        pressed, warm = (measured.values(name, state, _checked) for state in ("pressed", "warm"))
        if not (ratios := paired(pressed, warm)):
            continue
        title = f"under memory pressure / right before, checksummed, paired: {measured.ways[name].title}"
        report.add(title, ratios, unit="×")
        if name == WARM:
            what = "DRAM → bound model, checksummed, under memory pressure / before"
            report.require(what, median(ratios), at_most=UNCHANGED, unit="×")


def absent(ways: Iterable[Way]) -> list[str]:
    """What the table says of peers that are not there."""
    return [f"{way.label}: not installed (pip install {way.missing})" for way in ways if way.missing]


def spread(values: Sequence[float], *, digits: int = 3) -> str:
    """Median and [range]."""
    if not values:
        return ""
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}–{high:.{digits}f}]"

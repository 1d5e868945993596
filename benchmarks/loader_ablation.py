"""What each idea of the loader is worth: the same load with one of them turned off.

All of them read the checkpoint cold into memory of this process that was made resident before, as the store's
pool is. Every switch is compared, in the same round, with the load that differs from it in that one idea.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.loader_figures import paired, spread
from benchmarks.loader_files import BenchmarkFiles
from benchmarks.loader_ways import Load, Setting, Tensors, Way
from benchmarks.report import Report, wide_console
from native_loader import Arena, Checkpoint, LoadJob, Segment, crc32c, open_checkpoint

if TYPE_CHECKING:
    import torch

    from benchmarks.loader_rounds import Trial

PREFIX = "ablation/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How a load is done; the defaults are how it is done. `job` goes to LoadJob as it is."""

    kind: str = "auto"
    prefault: bool = True
    # Any: LoadJob's keywords are of several types.
    job: Mapping[str, Any] = field(default_factory=dict)
    check_after: bool = False
    copy_out: bool = False


@dataclass(frozen=True, slots=True)
class Switch:
    """`off` is a load without the idea, `on` the one it is compared with; names of ways, less `PREFIX`."""

    title: str
    on: str
    off: str


SWITCHES = (
    Switch("direct I/O → through the page cache", "all", "buffered"),
    Switch("queue depth 32 → one block at a time", "all", "depth-1"),
    Switch("pre-faulted pool → fresh memory", "all", "fresh-memory"),
    Switch("huge pages → pages of 4 KiB", "all", "small-pages"),
    Switch("zero-copy → tensors copied out", "all", "copied"),
    Switch("checksums while reading → after it", "all", "checked-after"),
    Switch("tiers overlap → second tier after the first", "second-tier", "second-tier-after"),
    Switch("execution order → alphabetical, first layer", "first-layer", "first-layer-alphabetical"),
    Switch("execution order → alphabetical, half of the layers", "half", "half-alphabetical"),
)


class _Memory:
    """A checkpoint's place in memory of this process, and the load into it."""

    def __init__(self, directory: Path, knobs: Knobs) -> None:
        import torch

        torch.empty(1)
        self._directory, self._knobs = directory, knobs
        self._offsets, total_bytes = open_checkpoint(directory).manifest.arena_offsets()
        self.arena = Arena(total_bytes, kind=knobs.kind)
        if knobs.prefault:
            self.arena.prefault()

    def start(self) -> tuple[Checkpoint, list[Segment], LoadJob]:
        """The manifest is read in the timed part, as by the store and the library."""
        checkpoint = open_checkpoint(self._directory)
        segments = checkpoint.segments(self._offsets)
        job = LoadJob(
            self.arena,
            segments,
            populate=not self._knobs.prefault,
            verify=not self._knobs.check_after,
            **self._knobs.job,
        )
        return checkpoint, segments, job

    def bind(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        sizes = [partition.size_bytes for partition in checkpoint.manifest.partitions]
        return checkpoint.bind(
            [self.arena.buffer(at, size) for at, size in zip(self._offsets, sizes, strict=True)]
        )


def _whole(setting: Setting, knobs: Knobs) -> Load:
    memory = _Memory(setting.files.checkpoint, knobs)

    def load() -> Tensors:
        checkpoint, segments, job = memory.start()
        job.result()
        if knobs.check_after:
            for one in segments:
                assert crc32c(memory.arena.buffer(one.arena_offset, one.length)) == one.crc32c
        tensors = memory.bind(checkpoint)
        return {name: tensor.clone() for name, tensor in tensors.items()} if knobs.copy_out else tensors

    return load


def _second_tier(setting: Setting, *, overlap: bool) -> Load:
    """A further tier behind DRAM, for which memory stands in: each chunk is copied on once it is there."""
    memory = _Memory(setting.files.checkpoint, Knobs())
    further = Arena(memory.arena.size_bytes)
    further.prefault()

    def load() -> Tensors:
        checkpoint, segments, job = memory.start()
        if not overlap:
            job.result()
        prefix_bytes = 0
        for one in segments:
            prefix_bytes += one.length
            job.wait_prefix(prefix_bytes)
            further.write(one.arena_offset, memory.arena.buffer(one.arena_offset, one.length))
        job.result()
        # What is bound and summed is the further tier's.
        memory.arena = further
        return memory.bind(checkpoint)

    return load


class _Arriving:
    """A load whose first part is there; the whole, when it is asked for."""

    def __init__(self, job: LoadJob, tensors: Tensors) -> None:
        self._job, self._tensors = job, tensors

    def state_dict(self) -> Tensors:
        self._job.result()
        return self._tensors


def _first_layers(setting: Setting, directory: Path, count: Callable[[int], int]) -> Load:
    """Returns once the embedding and the first `count(layers)` layers can be computed with."""
    memory = _Memory(directory, Knobs())
    layers = count(int(setting.files.expected["layers"]))

    # Any: what the clock needs of it is state_dict.
    def load() -> Any:
        checkpoint, _, job = memory.start()
        tensors = memory.bind(checkpoint)
        job.wait_prefix(checkpoint.manifest.prefix_bytes_for(_needed(tensors, layers)))
        return _Arriving(job, tensors)

    return load


def _needed(names: Mapping[str, object], layers: int) -> list[str]:
    begins = ("model.embed_tokens.", *(f"model.layers.{index}." for index in range(layers)))
    return [name for name in names if name.startswith(begins)]


def _way(name: str, label: str, prepare: Callable[[Setting], Load], reads: str = "checkpoint") -> Way:
    def files(where: BenchmarkFiles) -> list[Path]:
        directory: Path = getattr(where, reads)
        return [directory / "partition-0.bin", directory / "manifest.json"]

    return Way(name=PREFIX + name, label=label, prepare=prepare, reads=files, is_ours=True, is_warm=False)


def _with(name: str, label: str, knobs: Knobs) -> Way:
    return _way(name, label, lambda setting: _whole(setting, knobs))


def _half(layers: int) -> int:
    return max(1, layers // 2)


WAYS = (
    _with("all", "everything on", Knobs()),
    _with("buffered", "buffered reads", Knobs(job={"direct": False})),
    _with("depth-1", "one block at a time", Knobs(job={"queue_depth": 1, "threads": 1})),
    _with("fresh-memory", "fresh memory", Knobs(kind="anonymous", prefault=False)),
    _with("small-pages", "pages of 4 KiB", Knobs(kind="memfd")),
    _with("copied", "tensors copied out", Knobs(copy_out=True)),
    _with("checked-after", "checksums after the read", Knobs(check_after=True)),
    _way("second-tier", "second tier", lambda setting: _second_tier(setting, overlap=True)),
    _way("second-tier-after", "second tier after", lambda setting: _second_tier(setting, overlap=False)),
    _way(
        "first-layer",
        "first layer",
        lambda setting: _first_layers(setting, setting.files.checkpoint, lambda _: 1),
    ),
    _way(
        "first-layer-alphabetical",
        "first layer, alphabetical",
        lambda setting: _first_layers(setting, setting.files.alphabetical, lambda _: 1),
        "alphabetical",
    ),
    _way(
        "half",
        "half of the layers",
        lambda setting: _first_layers(setting, setting.files.checkpoint, _half),
    ),
    _way(
        "half-alphabetical",
        "half of the layers, alphabetical",
        lambda setting: _first_layers(setting, setting.files.alphabetical, _half),
        "alphabetical",
    ),
)


def report_ablation(report: Report, trials: Sequence[Trial]) -> list[tuple[str, list[float]]]:
    """Slowdown of each switch, paired by round: rows, a printed table, and what a plot is made of."""
    returned: dict[str, dict[int, float]] = {}
    for trial in trials:
        returned.setdefault(trial.way.removeprefix(PREFIX), {})[trial.round] = trial.taken.returned_s
    table = Table(title="ablation: one idea turned off at a time, cold")
    for column in ("turned off", "with it, s", "without, s", "slowdown ×"):
        table.add_column(column, justify="left" if column == "turned off" else "right")
    slowdowns = []
    for switch in SWITCHES:
        on, off = returned[switch.on], returned[switch.off]
        ratios = paired(off, on)
        slowdowns.append((switch.title, ratios))
        report.add(f"ablation · {switch.title} · slowdown", ratios, unit="×")
        table.add_row(
            switch.title, spread(list(on.values())), spread(list(off.values())), spread(ratios, digits=2)
        )
    wide_console().print(table)
    report.trials += [trial.record() for trial in trials]
    return slowdowns


def draw_ablation(slowdowns: Sequence[tuple[str, Sequence[float]]], axes: Any) -> None:
    """Bars with ranges into matplotlib's `axes`."""
    for at, (_, ratios) in enumerate(reversed(slowdowns)):
        middle = median(ratios)
        error = [[middle - min(ratios)], [max(ratios) - middle]]
        axes.barh(at, middle, 0.6, color="#0f766e", xerr=error, ecolor="#0f172a")
    axes.axvline(1.0, color="#0f172a", linestyle="--", linewidth=1)
    titles = [title for title, _ in reversed(slowdowns)]
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    axes.set_xlabel("times the load with everything on")
    axes.set_title("one idea turned off at a time")

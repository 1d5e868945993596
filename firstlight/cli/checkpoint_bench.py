"""`firstlight checkpoint bench`: how fast a checkpoint loads here, beside a plain read of its files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.checkpoint_inspect import CheckpointPath
from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, seconds, size, table
from firstlight.cli.progress_bar import progress_of

if TYPE_CHECKING:
    from native_loader import Checkpoint

PLAIN, COLD, CACHED, POOLED = "plain direct read", "load, cold disk", "buffered, page cache", "bind from DRAM"
PREFAULT_THREADS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    wall_s: float
    cpu_s: float


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: firstlight checkpoint bench ./qwen.ckpt · "
        "firstlight checkpoint bench ./qwen.ckpt --rounds 7 --json"
    )(bench)


def bench(
    checkpoint: CheckpointPath,
    rounds: Annotated[int, typer.Option(min=1, help="Each way is timed so often, in turn.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that read; unset: what suits this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time loading this checkpoint here. Nothing is written; memory for it is needed.

    The plain direct read fills memory that is ready, and verifies nothing: what the disk can give. A load
    takes fresh memory, verifies every byte and binds every tensor.
    """
    from native_loader import open_checkpoint

    opened = open_checkpoint(checkpoint)
    import torch  # noqa: F401  # two seconds that are no part of any load

    ways: dict[str, Callable[[], Timing]] = {
        PLAIN: lambda: _plain_read(opened, threads),
        COLD: lambda: _load(opened.path, threads),
        CACHED: lambda: _cached_read(opened, threads),
        POOLED: lambda: _bind(opened, threads),
    }
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    with progress_of("measuring", is_quiet=as_json) as advance:
        for done in range(rounds):
            # In turn, so that whatever else the machine does falls on all of them.
            for name, way in ways.items():
                timings[name].append(way())
            advance((done + 1) * opened.size_bytes, rounds * opened.size_bytes)
    rows = [_row(name, found, timings[PLAIN], opened.size_bytes) for name, found in timings.items()]
    if as_json:
        print_json({"path": str(checkpoint), "size_bytes": opened.size_bytes, "rounds": rounds, "ways": rows})
    else:
        _print(rows, opened.size_bytes)


def _row(name: str, found: list[Timing], plain: list[Timing], size_bytes: int) -> dict[str, float | str]:
    wall_s = statistics.median(timing.wall_s for timing in found)
    # Of pairs taken in the same round: a disk that others use is slow for both.
    share = statistics.median(p.wall_s / f.wall_s for p, f in zip(plain, found, strict=True))
    cpu_s = statistics.median(timing.cpu_s for timing in found)
    return {
        "way": name,
        "seconds": wall_s,
        "bytes_per_s": size_bytes / wall_s,
        "cpu_s_per_gb": cpu_s / (size_bytes / 1e9) if size_bytes else 0.0,
        "share_of_plain": share,
    }


def _print(rows: list[dict[str, float | str]], size_bytes: int) -> None:
    shown = table("WAY", "TIME", "RATE", "CPU-S/GB", "OF PLAIN")
    for row in rows:
        is_read = row["way"] != POOLED  # binding moves no bytes: a rate would say nothing
        shown.add_row(
            str(row["way"]),
            seconds(float(row["seconds"])),
            f"{size(float(row['bytes_per_s']))}/s" if is_read else "-",
            f"{float(row['cpu_s_per_gb']):.3f}",
            f"{float(row['share_of_plain']):.0%}" if is_read else "-",
        )
    console.print(f"{size(size_bytes)}, medians")
    console.print(shown)


def _timed(work: Callable[[], object]) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    kept = work()
    timing = Timing(time.perf_counter() - wall, time.process_time() - cpu)
    del kept  # giving memory back is no part of a load
    return timing


def _evict(checkpoint: Checkpoint) -> None:
    """Ask the kernel to forget these files' pages; a load reads past them anyway."""
    import os

    for entry in checkpoint.manifest.partitions:
        fd = os.open(checkpoint.path / entry.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _plain_read(checkpoint: Checkpoint, threads: int | None) -> Timing:
    from native_loader import Arena, LoadJob

    offsets, total_bytes = checkpoint.manifest.arena_offsets()
    with Arena(total_bytes) as arena:
        arena.prefault(threads=PREFAULT_THREADS)
        segments = checkpoint.segments(offsets)
        _evict(checkpoint)
        return _timed(lambda: LoadJob(arena, segments, threads=threads, verify=False).result())


def _load(path: Path, threads: int | None) -> Timing:
    from native_loader import load_state_dict, open_checkpoint

    _evict(open_checkpoint(path))
    return _timed(lambda: load_state_dict(path, threads=threads))


def _cached_read(checkpoint: Checkpoint, threads: int | None) -> Timing:
    """The second of two reads through the page cache; the first one fills it."""
    from native_loader import Arena, LoadJob

    offsets, total_bytes = checkpoint.manifest.arena_offsets()
    with Arena(total_bytes) as arena:
        segments = checkpoint.segments(offsets)
        LoadJob(arena, segments, threads=threads, direct=False).result()
        timing = _timed(lambda: LoadJob(arena, segments, threads=threads, direct=False).result())
    _evict(checkpoint)
    return timing


def _bind(checkpoint: Checkpoint, threads: int | None) -> Timing:
    """What an engine does with a pool that another process filled: map, make resident, bind."""
    import os

    from native_loader import Arena, ArenaView, LoadJob, open_checkpoint

    offsets, total_bytes = checkpoint.manifest.arena_offsets()
    with Arena(total_bytes) as arena:
        LoadJob(arena, checkpoint.segments(offsets), threads=threads).result()
        fd = arena.read_only_fd()

        def bind() -> object:
            opened = open_checkpoint(checkpoint.path)
            with ArenaView(fd, arena.size_bytes) as view:
                view.populate(threads=PREFAULT_THREADS)
                places = zip(offsets, opened.manifest.partitions, strict=True)
                return opened.bind([view.buffer(at, entry.size_bytes) for at, entry in places])

        try:
            return _timed(bind)
        finally:
            os.close(fd)

"""The loader's edges beyond SSD and DRAM, from a remote store and to a GPU: measured where they can be."""

from __future__ import annotations

from pathlib import Path

from benchmarks.loader_gpu import SIZE_GIB, report_gpu
from benchmarks.report import Report

MIB = 1 << 20
LINK_BYTES_PER_S = 100 * MIB
QUICK_GPU_GIB = 0.25
REMOTE_BOUNDS = (
    ("remote → first layer usable, of the link's time", "<= 1.1"),
    ("remote → all resident, of the link's time", "<= 1.05"),
)


def measure_elsewhere(
    report: Report, directory: Path, *, size_bytes: int, rounds: int, is_quick: bool
) -> None:
    """Both edges; what cannot be measured here is said so, and not as held."""
    _remote(report, directory, size_bytes=size_bytes, rounds=rounds, is_quick=is_quick)
    # A folder of its own: another size would take the place of files that were to be kept.
    size_gib = QUICK_GPU_GIB if is_quick else SIZE_GIB
    report_gpu(report, directory / "gpu", rounds=rounds, size_gib=size_gib)


def _remote(report: Report, directory: Path, *, size_bytes: int, rounds: int, is_quick: bool) -> None:
    from benchmarks.loader_remote import add_to, measure_remote

    if is_quick:
        # Seconds of a link's time tell nothing of its rate: start-up would be most of it.
        for name, bound in REMOTE_BOUNDS:
            report.not_measured(name, bound=bound, why="--quick")
        return
    try:
        figures = measure_remote(
            size_bytes=size_bytes, link_bytes_per_s=LINK_BYTES_PER_S, rounds=rounds, directory=directory
        )
    except RuntimeError as why:
        for name, bound in REMOTE_BOUNDS:
            report.not_measured(name, bound=bound, why=str(why).splitlines()[0])
        return
    report.add("remote → first layer usable", [one.prefix_s for one in figures], unit="s")
    report.add("remote → all resident", [one.resident_s for one in figures], unit="s")
    report.add("remote → SSD copy published", [one.published_s for one in figures], unit="s")
    add_to(report, figures)

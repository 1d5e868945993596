"""A picture of the loader's benchmark: bars with their ranges, cold above, warm below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loader_ablation import draw_ablation
from benchmarks.loader_figures import Measured

MISSING = "matplotlib is not installed, so no plot was drawn (pip install matplotlib)"
OURS, PEERS = "#c2410c", "#64748b"


# Any: matplotlib's axes.
def _bars(measured: Measured, state: str, axes: Any) -> None:
    names = [*measured.names(state, ours=True), *measured.names(state, ours=False)]
    for at, name in enumerate(reversed(names)):
        colour = OURS if measured.ways[name].is_ours else PEERS
        for shift, alpha, field in ((0.2, 0.45, "resident_s"), (-0.2, 1.0, "returned_s")):
            seconds = [getattr(trial.taken, field) for trial in measured.of(name, state)]
            middle = median(seconds)
            error = [[middle - min(seconds)], [max(seconds) - middle]]
            axes.barh(at - shift, middle, 0.38, color=colour, alpha=alpha, xerr=error, ecolor="#0f172a")
    axes.set_yticks(range(len(names)), [measured.ways[name].title for name in reversed(names)], fontsize=8)
    axes.set_xlabel("seconds (solid: call returned; pale: every byte resident)")
    axes.set_title(f"{state} · {measured.size_bytes / 1e9:.2f} GB")
    axes.set_xscale("log")
    if state == "cold" and measured.limits:
        limit = median(measured.limit_s(one.round) for one in measured.limits)
        axes.axvline(limit, color="#0f172a", linestyle="--", linewidth=1)
        axes.annotate("limit", (limit, len(names) - 0.4), fontsize=8)


def draw(measured: Measured, slowdowns: Sequence[tuple[str, Sequence[float]]], file: Path) -> str | None:
    """Write the plot; answers why not, if matplotlib is missing. `slowdowns` may be empty."""
    try:
        import matplotlib
    except ImportError:
        return MISSING
    matplotlib.use("Agg")
    from matplotlib import pyplot

    states = [state for state in ("cold", "warm") if measured.of_state(state)]
    frames_wanted = len(states) + bool(slowdowns)
    if not frames_wanted:
        return "nothing was measured, so no plot was drawn"
    figure, frames = pyplot.subplots(
        frames_wanted, 1, figsize=(10, 1.5 + 4 * frames_wanted), squeeze=False, layout="constrained"
    )
    for state, axes in zip(states, frames[:, 0], strict=False):
        _bars(measured, state, axes)
    if slowdowns:
        draw_ablation(slowdowns, frames[-1, 0])
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return None

"""A picture of the API's throughput over the number of streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.api_load import Level

MISSING = "matplotlib is not installed, so no plot was drawn (pip install matplotlib)"


def plot(levels: Mapping[str, Sequence[Level]], path: Path) -> None:
    """Requests a second and time to first token, one line a way. Prints why, where it cannot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(MISSING)
        return
    figure = Figure(figsize=(11, 4.5))
    throughput, first_token = figure.subplots(1, 2)
    for way, measured in levels.items():
        streams = [level.streams for level in measured]
        throughput.plot(streams, [level.requests_per_s for level in measured], marker="o", label=way)
        answered = [level for level in measured if level.first_token_s]
        firsts = [sorted(level.first_token_s)[len(level.first_token_s) // 2] for level in answered]
        first_token.plot([level.streams for level in answered], firsts, marker="o", label=way)
    for axes, title in ((throughput, "requests per second"), (first_token, "first token, p50 seconds")):
        axes.set(xscale="log", yscale="log", xlabel="streams at a time", title=title)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)

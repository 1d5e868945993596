"""How the estimator learns from what starts took: a minority of odd observations hardly moves a fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

from firstlight.domain.fleet import EdgeModel
from firstlight.domain.robust_line import fit_line

# An overhead of so many times the usual one is no overhead, but recovery from something.
MISHAP_FACTOR = 10.0
# Fewer observations of one size than this, and the prior has a voice among them.
ENOUGH_ALIKE = 3
# No device is as quick as this; a slope of nothing has no bandwidth.
LEAST_SECONDS_PER_BYTE = 1e-15


@dataclass(frozen=True, slots=True)
class TransferObservation:
    size_bytes: int
    elapsed_s: float


def fit_edge(observations: Sequence[TransferObservation], prior: EdgeModel) -> EdgeModel:
    """Overhead and bandwidth of what was seen, robust to outliers; without any, the prior.

    Sizes that differ tell both, by Theil and Sen. Sizes that are alike cannot: then the whole prior is scaled
    by the median of actual over predicted, so that other sizes are foretold sensibly too. The first one or
    two are weighed against the prior: one odd first transfer is believed by half (its root), not altogether.
    """
    seen = [row for row in observations if row.size_bytes > 0 and row.elapsed_s > 0]
    if not seen:
        return prior
    line = fit_line([(float(row.size_bytes), row.elapsed_s) for row in seen])
    if line is None:
        scale = _scale(seen, prior)
        overhead_s = prior.overhead_s * scale
        seconds_per_byte = scale / prior.bandwidth_bytes_per_s
    else:
        overhead_s, seconds_per_byte = line.intercept, line.slope
    return EdgeModel(
        overhead_s=overhead_s,
        bandwidth_bytes_per_s=1 / max(seconds_per_byte, LEAST_SECONDS_PER_BYTE),
        observations=len(seen),
    )


def _scale(seen: Sequence[TransferObservation], prior: EdgeModel) -> float:
    """How many times longer than by the prior; the median of logarithms, where twice and half weigh alike."""
    voices = [
        log(row.elapsed_s / (prior.overhead_s + row.size_bytes / prior.bandwidth_bytes_per_s)) for row in seen
    ]
    if len(voices) < ENOUGH_ALIKE:
        voices.append(0.0)
    return exp(median(voices))


def learned_seconds(observed_s: Iterable[float], prior_s: float) -> float:
    """Median of the last observations; the prior stands until there is one."""
    rows = [seconds for seconds in observed_s if seconds >= 0]
    return median(rows) if rows else prior_s


def learned_overhead_s(observed_s: Iterable[float], prior_s: float) -> float:
    """As `learned_seconds`, without what only a mishap explains: a worker killed midway adds seconds.

    A mishap only ever adds, so the quicker quarter says what is usual. The prior is one voice among them.
    """
    rows = sorted(seconds for seconds in observed_s if seconds >= 0)
    voices = sorted([*rows, prior_s])
    usual_s = voices[(len(voices) - 1) // 4]
    kept = [seconds for seconds in rows if seconds <= MISHAP_FACTOR * usual_s]
    return median(kept) if kept else usual_s

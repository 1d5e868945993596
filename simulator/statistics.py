"""Means over seeds with 95% confidence intervals, by Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond the last, the normal one.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.960


@dataclass(frozen=True, slots=True)
class Interval:
    """`mean` ± `half`; `half` is 0 where one value says nothing of how they spread."""

    mean: float
    half: float
    count: int


def interval(values: Sequence[float]) -> Interval:
    """Raises: statistics.StatisticsError without values."""
    if len(values) < 2:
        return Interval(mean(values), 0.0, len(values))
    freedom = len(values) - 1
    factor = _T95[freedom - 1] if freedom <= len(_T95) else _NORMAL95
    return Interval(mean(values), factor * stdev(values) / sqrt(len(values)), len(values))

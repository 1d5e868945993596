"""A straight line through points of which a minority may be wild. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Places that lie closer to each other than this share of the larger say nothing of a slope, only of noise.
APART_SHARE = 0.25
# Fewer slopes than this are no majority of anything.
SLOPES_AT_LEAST = 3


@dataclass(frozen=True, slots=True)
class Line:
    """`y = slope · x + intercept`; neither is negative."""

    slope: float
    intercept: float


def fit_line(points: Sequence[tuple[float, float]]) -> Line | None:
    """Theil and Sen's line: the median of slopes between pairs, the median of what is left.

    It stands as long as fewer than 29% of the points are wild. A line that would cut the axis below nothing
    is put through the origin instead. None: the points lie too close to each other, or rise nowhere.
    """
    slopes = [
        (second[1] - first[1]) / (second[0] - first[0])
        for index, first in enumerate(points)
        for second in points[index + 1 :]
        if abs(second[0] - first[0]) > APART_SHARE * max(first[0], second[0])
    ]
    if len(slopes) < SLOPES_AT_LEAST or (slope := median(slopes)) <= 0:
        return None
    intercept = median(y - slope * x for x, y in points)
    if intercept >= 0:
        return Line(slope, intercept)
    return Line(median(y / x for x, y in points if x > 0), 0.0)

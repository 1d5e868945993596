"""How one model is asked for: a histogram of the gaps between its spells of activity, small enough for a row.

A gap is the time from the end of the last request that ran to the arrival of the next one, so that a gap is
just what a keep-alive has to bridge. Bins are geometric, four an octave from 1 s to 4.5 h: a start takes
seconds and a night takes hours, and a percentile is right to a fifth everywhere in between.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

from firstlight.domain.errors import InvalidEstimate

# Upper edges of the bins, seconds; the first bin is everything below a second.
EDGES_S = tuple(2 ** (step / 4) for step in range(57))
BINS = len(EDGES_S)
# At so many gaps all counts are halved: what was long ago counts ever less, and a row stays small.
AGED_AT = 512
LONG_GAPS_KEPT = 8
# No instance is let go sooner: what is bridged anyway says nothing, and would drown the gaps that do.
SHORTEST_GAP_S = 1.0


@dataclass(frozen=True, slots=True)
class ArrivalHistory:
    """Counts of gaps by bin; gaps beyond the last edge are counted apart, the last few kept as they were."""

    counts: tuple[int, ...] = (0,) * BINS
    beyond: int = 0
    # The most recent gaps beyond the last edge, seconds, oldest first.
    long_gaps_s: tuple[float, ...] = ()
    # When the model was last active, on the caller's clock; None: never.
    active_until_s: float | None = None

    def __post_init__(self) -> None:
        if len(self.counts) != BINS or min(self.counts) < 0 or self.beyond < 0:
            raise InvalidEstimate(f"an arrival history has {BINS} counts of 0 or more")

    @property
    def seen(self) -> int:
        """Gaps counted, those beyond the last edge included."""
        return sum(self.counts) + self.beyond

    def idle_s(self, now_s: float) -> float | None:
        """How long the model has been quiet; None if it was never active."""
        return None if self.active_until_s is None else max(0.0, now_s - self.active_until_s)

    def with_gap(self, gap_s: float) -> ArrivalHistory:
        """The history after one more gap. Raises: InvalidEstimate for a negative one."""
        if not gap_s >= 0:
            raise InvalidEstimate(f"a gap of {gap_s} s has no meaning")
        place = bisect_right(EDGES_S, gap_s)
        aged = self._aged() if self.seen >= AGED_AT else self
        if place == BINS:
            kept = (*aged.long_gaps_s, gap_s)[-LONG_GAPS_KEPT:]
            return replace(aged, beyond=aged.beyond + 1, long_gaps_s=kept)
        counts = (*aged.counts[:place], aged.counts[place] + 1, *aged.counts[place + 1 :])
        return replace(aged, counts=counts)

    def with_activity(self, *, from_s: float, until_s: float) -> ArrivalHistory:
        """The history after a spell of activity.

        One that began before the last had ended, or within `SHORTEST_GAP_S` of that, makes no gap.
        """
        active_until_s = until_s if self.active_until_s is None else max(self.active_until_s, until_s)
        gap_s = None if self.active_until_s is None else from_s - self.active_until_s
        after = self if gap_s is None or gap_s < SHORTEST_GAP_S else self.with_gap(gap_s)
        return replace(after, active_until_s=active_until_s)

    def survival(self, gap_s: float) -> float:
        """P(a gap is longer than `gap_s`), even within a bin; 1 where nothing was seen.

        One gap that has not ended yet stands among those seen, so that this never reaches 0.
        """
        place = bisect_right(EDGES_S, gap_s)
        longer = float(self.beyond + sum(self.counts[place + 1 :]))
        if place < BINS:
            lower_s, upper_s = bin_bounds_s(place)
            longer += self.counts[place] * (upper_s - max(lower_s, gap_s)) / (upper_s - lower_s)
        return (longer + 1) / (self.seen + 1)

    def need_within(self, horizon_s: float, *, idle_s: float) -> float | None:
        """P(the next request comes within `horizon_s`), given that the model has been quiet for `idle_s`.

        None where nothing was seen: that is not the same as unlikely.
        """
        if not self.seen:
            return None
        return 1.0 - self.survival(idle_s + horizon_s) / self.survival(idle_s)

    def rate_per_s(self, *, idle_s: float = 0.0) -> float:
        """Spells of activity a second of quiet; the gap under way counts as so long as it is already."""
        middles = sum(
            count * sum(bin_bounds_s(place)) / 2 for place, count in enumerate(self.counts) if count
        )
        long_s = max(EDGES_S[-1], sum(self.long_gaps_s) / max(1, len(self.long_gaps_s)))
        quiet_s = middles + self.beyond * long_s + idle_s
        return self.seen / quiet_s if quiet_s > 0 else 0.0

    def expected_idle_for_s(self, *, idle_s: float) -> float | None:
        """The median of how much longer the quiet will last; None where the history cannot say."""
        if not self.seen:
            return None
        half = self.survival(idle_s) / 2 * (self.seen + 1)
        # Gaps longer than each edge, and the one that has not ended.
        longer = accumulate(reversed(self.counts[1:]), initial=self.beyond + 1)
        edges = zip(EDGES_S, reversed(tuple(longer)), strict=True)
        return next((edge_s - idle_s for edge_s, left in edges if edge_s > idle_s and left <= half), None)

    def expected_idle_by_bin_s(self) -> tuple[float | None, ...]:
        """`expected_idle_for_s` of a quiet that has just entered each bin."""
        return tuple(self.expected_idle_for_s(idle_s=bin_bounds_s(place)[0]) for place in range(BINS))

    def percentile_bounds_s(self, share: float) -> tuple[float, float] | None:
        """Bounds of the bin that holds this percentile of the gaps within bounds; None without any."""
        within = self.seen - self.beyond
        if not within:
            return None
        upto = accumulate(self.counts)
        place = next(place for place, count in enumerate(upto) if count and count >= share * within)
        return bin_bounds_s(place)

    def _aged(self) -> ArrivalHistory:
        return replace(self, counts=tuple(count // 2 for count in self.counts), beyond=self.beyond // 2)


def bin_bounds_s(place: int) -> tuple[float, float]:
    """Lower and upper edge of a bin, seconds."""
    return (EDGES_S[place - 1] if place else 0.0, EDGES_S[place])

"""Laws of arrival histories and of what keep-alive policies make of them."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.domain.autoscaling.arrivals import (
    AGED_AT,
    EDGES_S,
    LONG_GAPS_KEPT,
    SHORTEST_GAP_S,
    ArrivalHistory,
)
from firstlight.domain.autoscaling.choice import KEEP_ALIVE_POLICIES, keep_alive_policy
from firstlight.domain.autoscaling.keep_alive import HybridHistogram, ModelLife
from firstlight.domain.autoscaling.layered import LayeredKeepAlive
from firstlight.domain.autoscaling.warmth import Layer, LayerCost, best_hold_s, break_even_s, poisson
from firstlight.domain.errors import InvalidEstimate, InvalidSettings

gaps = st.floats(0, 100_000)
short_gaps = st.floats(1, EDGES_S[-1] - 1)


def history_of(gaps_s: list[float]) -> ArrivalHistory:
    history = ArrivalHistory()
    for gap_s in gaps_s:
        history = history.with_gap(gap_s)
    return history


def life_of(history: ArrivalHistory, **changes: object) -> ModelLife:
    return ModelLife(**{"history": history, "fixed_keep_alive_s": 300.0, "start_s": 5.0, **changes})  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(gaps, max_size=60))
def test_every_gap_is_counted_once(gaps_s: list[float]) -> None:
    history = history_of(gaps_s)
    assert history.seen == len(gaps_s)
    assert history.beyond == sum(gap >= EDGES_S[-1] for gap in gaps_s)
    assert list(history.long_gaps_s) == [gap for gap in gaps_s if gap >= EDGES_S[-1]][-LONG_GAPS_KEPT:]


def test_a_history_stays_small_and_forgets() -> None:
    history = history_of([10.0] * (4 * AGED_AT))
    assert history.seen <= AGED_AT
    for _ in range(2 * AGED_AT):
        history = history.with_gap(1000.0)
    assert history.survival(100.0) > 0.75, "what is long ago counts less"


@settings(deadline=None)
@given(st.lists(gaps, max_size=40), st.lists(st.floats(0, 200_000), min_size=2, max_size=8))
def test_waiting_longer_is_never_less_likely_to_be_ended(gaps_s: list[float], times_s: list[float]) -> None:
    history = history_of(gaps_s)
    chances = [history.survival(time_s) for time_s in sorted(times_s)]
    assert all(0 < later <= sooner <= 1 for sooner, later in pairwise(chances))
    needs = [history.need_within(horizon_s, idle_s=times_s[0]) for horizon_s in sorted(times_s)]
    if not gaps_s:
        assert set(needs) == {None}
    else:
        known = [need for need in needs if need is not None]
        assert len(known) == len(needs) and known == sorted(known)
        assert all(0 <= need < 1 for need in known)


@settings(deadline=None)
@given(st.lists(gaps, max_size=40), st.floats(0, 20_000))
def test_the_quiet_is_expected_to_last_until_it_is_as_likely_over_as_not(
    gaps_s: list[float], idle_s: float
) -> None:
    history = history_of(gaps_s)
    expected_s = history.expected_idle_for_s(idle_s=idle_s)
    half = history.survival(idle_s) / 2
    later = [edge for edge in EDGES_S if edge > idle_s]
    if expected_s is None:
        assert not gaps_s or all(history.survival(edge) > half for edge in later)
        return
    end_s = min(later, key=lambda edge: abs(edge - idle_s - expected_s))
    assert idle_s + expected_s == pytest.approx(end_s)
    assert history.survival(end_s) <= half * (1 + 1e-9)
    assert all(history.survival(edge) > half * (1 - 1e-9) for edge in later if edge < end_s)


@settings(deadline=None)
@given(st.lists(short_gaps, min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_percentile_lies_in_the_bin_that_is_named(gaps_s: list[float], share: float) -> None:
    bounds = history_of(gaps_s).percentile_bounds_s(share)
    assert bounds is not None
    below = sum(gap < bounds[0] for gap in gaps_s)
    upto = sum(gap < bounds[1] for gap in gaps_s)
    assert below < share * len(gaps_s) <= upto


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 100)), max_size=20))
def test_spells_that_touch_make_no_gap(spells: list[tuple[float, float]]) -> None:
    history, until_s = ArrivalHistory(), None
    expected = []
    for begins_s, lasts_s in spells:
        if until_s is not None and begins_s - until_s >= SHORTEST_GAP_S:
            expected.append(begins_s - until_s)
        until_s = max(begins_s + lasts_s, until_s if until_s is not None else 0.0)
        history = history.with_activity(from_s=begins_s, until_s=begins_s + lasts_s)
    assert history.counts == history_of(expected).counts
    assert history.active_until_s == until_s


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(InvalidEstimate):
        ArrivalHistory().with_gap(-1.0)
    with pytest.raises(InvalidEstimate):
        ArrivalHistory(counts=(1, 2))
    with pytest.raises(InvalidEstimate):
        LayerCost(saves_s=-1, price=1)
    with pytest.raises(InvalidSettings):
        keep_alive_policy("for-ever")


@settings(deadline=None)
@given(st.sampled_from(KEEP_ALIVE_POLICIES), st.lists(gaps, max_size=60), st.floats(0, 10_000))
def test_every_policy_answers_every_history(name: str, gaps_s: list[float], fixed_s: float) -> None:
    policy = keep_alive_policy(name, longest_s=1800.0)
    life = life_of(history_of(gaps_s), fixed_keep_alive_s=fixed_s)
    window = policy.window(life)
    assert window.prewarm_s >= 0 and 0 <= window.keep_alive_s <= max(fixed_s, 1800.0)
    times = policy.times_to_live_s(life)
    assert times[Layer.GPU] == window.release_s
    assert list(times.values()) == sorted(times.values(), reverse=True), "lower layers live longer"


@settings(deadline=None)
@given(st.lists(gaps, max_size=11))
def test_few_gaps_leave_the_fixed_time(gaps_s: list[float]) -> None:
    history = history_of([gap for gap in gaps_s if gap < EDGES_S[-1]])
    window = HybridHistogram().window(life_of(history))
    assert (window.prewarm_s, window.keep_alive_s) == (0.0, 300.0)


def test_gaps_without_a_pattern_leave_the_fixed_time() -> None:
    window = HybridHistogram().window(life_of(history_of([edge / 1.05 for edge in EDGES_S])))
    assert (window.keep_alive_s, window.basis) == (300.0, "fixed: the gaps have no pattern")


@settings(deadline=None)
@given(st.lists(st.floats(1, 60), min_size=12, max_size=100))
def test_a_model_asked_for_every_minute_is_kept_just_over_its_gaps(gaps_s: list[float]) -> None:
    history = history_of(gaps_s)
    window = HybridHistogram(spread_at_least=0.0).window(life_of(history))
    assert window.prewarm_s == 0
    missed = sum(gap > window.keep_alive_s for gap in gaps_s)
    assert missed <= 0.01 * len(gaps_s)
    # A bin's width and the margin beyond the longest gap, no more.
    assert window.keep_alive_s <= max(gaps_s) * 2 ** (1 / 4) * 1.1 + 1e-6


@settings(deadline=None)
@given(st.floats(900, 10_000), st.floats(0, 0.05), st.integers(12, 80))
def test_a_model_asked_for_like_a_clock_is_let_go_and_brought_back_in_time(
    period_s: float, jitter: float, count: int
) -> None:
    gaps_s = [period_s * (1 + jitter * (turn % 3 - 1)) for turn in range(count)]
    window = HybridHistogram(longest_s=inf).window(life_of(history_of(gaps_s)))
    assert window.release_s == 0 and window.prewarm_s > period_s / 2
    assert all(window.is_held(gap_s) for gap_s in gaps_s)
    # Brought back early enough to stand by then.
    assert window.prewarm_s + 5.0 <= min(gaps_s)


def test_gaps_too_long_to_count_are_foreseen_when_they_agree() -> None:
    nightly = HybridHistogram().window(life_of(history_of([24_000.0, 25_000.0, 24_500.0])))
    assert nightly.release_s == 0 and nightly.is_held(24_400.0)
    wild = HybridHistogram().window(life_of(history_of([17_000.0, 25_000.0, 90_000.0])))
    assert (wild.prewarm_s, wild.keep_alive_s) == (0.0, 300.0)


costs = st.builds(
    LayerCost, saves_s=st.floats(0, 100), price=st.floats(0, 1), shared_rate_per_s=st.none() | st.floats(0, 1)
)


@settings(deadline=None)
@given(costs, st.floats(1, 10_000), st.floats(0, 100_000))
def test_holding_what_is_unknown_costs_at_most_twice_the_best(
    cost: LayerCost, longest_s: float, gap_s: float
) -> None:
    def spent(hold_s: float) -> float:
        return cost.price * min(gap_s, hold_s) + (cost.saves_s if gap_s > hold_s else 0.0)

    hold_s = break_even_s(cost, longest_s=longest_s)
    best = min(cost.price * gap_s, cost.saves_s)
    assert hold_s == longest_s or spent(hold_s) <= 2 * best + 1e-6


@settings(deadline=None)
@given(costs, st.lists(short_gaps, min_size=1, max_size=30), st.floats(1, 20_000))
def test_the_best_time_to_hold_is_the_best_of_all_that_are_looked_at(
    cost: LayerCost, gaps_s: list[float], longest_s: float
) -> None:
    survival = history_of(gaps_s).survival
    grid = [0.0, *(edge for edge in EDGES_S if edge < longest_s), longest_s]

    def expected(hold_s: float) -> float:
        """The trapezium over each bin, in which the survival is a straight line."""
        points = [point for point in grid if point <= hold_s]
        area = sum((b - a) * (survival(a) + survival(b)) / 2 for a, b in pairwise(points))
        return cost.price * area + cost.saves_s * survival(hold_s)

    chosen = best_hold_s(cost, survival, longest_s=longest_s)
    assert expected(chosen) <= min(expected(point) for point in grid) + 1e-6


def test_layers_are_kept_by_what_they_save_and_how_widely_they_are_shared() -> None:
    policy = LayeredKeepAlive()
    rare = life_of(
        history_of([600.0] * 20),
        costs={
            Layer.GPU: LayerCost(saves_s=1.0, price=0.01),
            Layer.DRAM: LayerCost(saves_s=8.0, price=0.001),
            Layer.ARCHITECTURE: LayerCost(saves_s=2.0, price=0.001, shared_rate_per_s=0.01),
            Layer.SPARE: LayerCost(saves_s=6.0, price=0.0001, shared_rate_per_s=1.0),
        },
    )
    times = policy.times_to_live_s(rare)
    assert times[Layer.GPU] == 0.0, "ten minutes on a GPU cost six seconds and save one"
    assert times[Layer.DRAM] > 600.0, "ten minutes in DRAM cost 0.6 s and save 8"
    assert times[Layer.SPARE] >= times[Layer.ARCHITECTURE] >= times[Layer.DRAM]
    assert best_hold_s(LayerCost(saves_s=2, price=1e-4), poisson(1.0), longest_s=60) > 5
    assert best_hold_s(LayerCost(saves_s=2, price=1.0), poisson(0.001), longest_s=60) == 0

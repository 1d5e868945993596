"""The online fit: exact on clean data, unmoved by a minority of outliers, never meaningless."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.estimator import transfer_seconds
from firstlight.domain.fleet import PRIORS, Edge, EdgeModel
from firstlight.domain.learning import TransferObservation, fit_edge, learned_overhead_s, learned_seconds

PRIOR = PRIORS[Edge.SSD_TO_DRAM]


@given(
    st.floats(0.0, 1.0),
    st.floats(1e7, 1e11),
    st.lists(st.integers(1 << 24, 1 << 36), min_size=6, max_size=12, unique=True),
)
def test_clean_observations_are_predicted(overhead_s: float, bandwidth: float, sizes: list[int]) -> None:
    rows = [TransferObservation(n, overhead_s + n / bandwidth) for n in sizes]
    fitted = fit_edge(rows, PRIOR)
    for row in rows:
        assert transfer_seconds(fitted, row.size_bytes) == pytest.approx(row.elapsed_s, rel=0.25, abs=0.05)


@given(st.floats(0.05, 50.0), st.integers(8, 20))
def test_one_model_loaded_again_and_again_is_predicted_by_its_median(elapsed_s: float, count: int) -> None:
    rows = [TransferObservation(540_000_000, elapsed_s)] * count
    assert transfer_seconds(fit_edge(rows, PRIOR), 540_000_000) == pytest.approx(elapsed_s, rel=0.01)


@given(st.lists(st.floats(10.0, 1000.0), min_size=1, max_size=3))
def test_a_minority_of_outliers_does_not_move_the_fit(outliers: list[float]) -> None:
    clean = [TransferObservation(n << 26, 0.01 + (n << 26) / 2e9) for n in range(8, 24)]
    wild = [TransferObservation(16 << 26, seconds) for seconds in outliers]
    fitted = fit_edge([*clean, *wild], PRIOR)
    assert transfer_seconds(fitted, 16 << 26) == pytest.approx(0.01 + (16 << 26) / 2e9, rel=0.2)


@given(
    st.floats(0.0, 2.0),
    st.floats(1e8, 1e10),
    st.lists(st.tuples(st.integers(0, 29), st.floats(0.001, 100.0)), max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_fifth_of_wild_transfers_hardly_changes_the_estimate(
    overhead_s: float, bandwidth: float, wild: list[tuple[int, float]], chance: Random
) -> None:
    sizes = [(1 + number) << 28 for number in range(30)]
    rows = [
        TransferObservation(size, (overhead_s + size / bandwidth) * chance.uniform(0.95, 1.05))
        for size in sizes
    ]
    for index, factor in wild:
        rows[index] = TransferObservation(sizes[index], rows[index].elapsed_s * factor)
    chance.shuffle(rows)
    fitted = fit_edge(rows, PRIOR)
    for size in (1 << 29, 1 << 31, 30 << 28):
        # Of what the largest takes, an error is as good as none for the smallest.
        little_s = 0.05 * (overhead_s + sizes[-1] / bandwidth)
        expected_s = overhead_s + size / bandwidth
        assert transfer_seconds(fitted, size) == pytest.approx(expected_s, rel=0.2, abs=little_s)


@given(st.floats(1.0, 1e4))
def test_one_odd_first_transfer_is_believed_by_half(times_slower: float) -> None:
    size = 500_000_000
    usual_s = transfer_seconds(PRIOR, size)
    fitted = fit_edge([TransferObservation(size, usual_s * times_slower)], PRIOR)
    assert transfer_seconds(fitted, size) == pytest.approx(usual_s * times_slower**0.5, rel=1e-6)


@given(st.floats(0.1, 100.0), st.integers(3, 10))
def test_sizes_never_seen_are_foretold_in_proportion(times_slower: float, count: int) -> None:
    """A start that was quicker than the prior's overhead says nothing of a bandwidth without end."""
    size = 100_000_000
    rows = [TransferObservation(size, transfer_seconds(PRIOR, size) * times_slower)] * count
    fitted = fit_edge(rows, PRIOR)
    expected_s = transfer_seconds(PRIOR, 20 * size) * times_slower
    assert transfer_seconds(fitted, 20 * size) == pytest.approx(expected_s, rel=1e-6)


@given(st.lists(st.tuples(st.integers(-5, 1 << 40), st.floats(-1, 1e4)), max_size=10))
def test_a_fit_always_has_a_meaning(rows: list[tuple[int, float]]) -> None:
    fitted = fit_edge([TransferObservation(n, s) for n, s in rows], PRIOR)
    assert fitted.bandwidth_bytes_per_s > 0
    assert fitted.overhead_s >= 0
    assert transfer_seconds(fitted, 1 << 30) > 0


def test_no_observation_leaves_the_prior() -> None:
    assert fit_edge([], PRIOR) == PRIOR
    assert learned_seconds([], 0.5) == 0.5


@pytest.mark.parametrize(
    ("edge", "size_bytes"),
    [
        (EdgeModel(0.0, 0.0), 1),
        (EdgeModel(0.0, -1.0), 1),
        (EdgeModel(-0.1, 1.0), 1),
        (EdgeModel(0.0, float("nan")), 1),
        (EdgeModel(0.0, 1.0), -1),
    ],
)
def test_an_estimate_without_meaning_is_refused(edge: EdgeModel, size_bytes: int) -> None:
    with pytest.raises(InvalidEstimate):
        transfer_seconds(edge, size_bytes)


@given(
    st.floats(0.001, 0.4),
    st.lists(st.floats(0.8, 1.25), min_size=9, max_size=40),
    st.lists(st.floats(3.0, 1000.0), max_size=3),
    st.randoms(use_true_random=False),
)
def test_recoveries_from_crashes_do_not_change_what_control_work_usually_takes(
    usual_s: float, spread: list[float], mishaps: list[float], chance: Random
) -> None:
    seen = [usual_s * factor for factor in spread] + [max(one, 20 * usual_s) for one in mishaps]
    chance.shuffle(seen)
    assert 0.8 * usual_s <= learned_overhead_s(seen, 0.05) <= 1.25 * usual_s


def test_one_start_that_survived_a_crash_is_not_believed() -> None:
    assert learned_overhead_s([], 0.05) == 0.05
    assert learned_overhead_s([8.0], 0.05) == 0.05
    assert learned_overhead_s([8.0, 0.04, 9.0, 0.06], 0.05) == pytest.approx(0.05)
    # A slow control plane is believed once it has been seen often enough.
    assert learned_overhead_s([2.0] * 8, 0.05) == 2.0

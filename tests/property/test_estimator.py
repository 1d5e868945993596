"""The online fit: exact on clean data, unmoved by a minority of outliers, never meaningless."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.estimator import (
    PRIORS,
    TransferObservation,
    fit_edge,
    learned_overhead_s,
    learned_seconds,
    transfer_seconds,
)
from firstlight.domain.fleet import Edge, EdgeModel

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

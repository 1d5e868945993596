"""Laws of what a migration costs and how a cache travels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.migration import (
    PRIOR_LINK,
    PRIOR_MOVE,
    Link,
    MoveObservation,
    Transfer,
    choose_transfer,
    fit_move,
)

tokens = st.integers(min_value=1, max_value=8192)
seconds = st.floats(min_value=0.0, max_value=30.0)
observations = st.lists(st.builds(MoveObservation, tokens=tokens, seconds=seconds), max_size=40)


@given(count=tokens, size=st.integers(min_value=0, max_value=10**10))
def test_exact_is_never_given_up(count: int, size: int) -> None:
    chosen = choose_transfer(Transfer.EXACT, tokens=count, cache_bytes=size, link=PRIOR_LINK)
    assert chosen is Transfer.EXACT


@given(
    count=tokens,
    size=st.integers(min_value=1, max_value=10**10),
    bandwidth=st.floats(min_value=1e3, max_value=1e12),
    rate=st.floats(min_value=1.0, max_value=1e6),
)
def test_fast_takes_the_sooner_one(count: int, size: int, bandwidth: float, rate: float) -> None:
    link = Link(bandwidth_bytes_per_s=bandwidth, prefill_tokens_per_s=rate)
    chosen = choose_transfer(Transfer.FAST, tokens=count, cache_bytes=size, link=link)
    cost = {Transfer.EXACT: size / bandwidth, Transfer.TOKENS: count / rate}
    assert cost[chosen] == min(cost.values())


def test_a_link_without_meaning_is_refused() -> None:
    with pytest.raises(InvalidEstimate):
        choose_transfer(
            Transfer.FAST, tokens=1, cache_bytes=1, link=Link(bandwidth_bytes_per_s=0, prefill_tokens_per_s=1)
        )


@given(seen=observations, more=tokens)
def test_an_estimate_grows_with_tokens_and_is_never_negative(seen: list[MoveObservation], more: int) -> None:
    model = fit_move(seen)
    assert 0.0 <= model.seconds(0) <= model.seconds(more) <= model.seconds(more + 1)


@given(
    lengths=st.lists(tokens, min_size=3, max_size=30, unique=True),
    slope=st.floats(min_value=1e-6, max_value=1e-2),
    overhead_s=st.floats(min_value=0.0, max_value=2.0),
    outlier_s=st.floats(min_value=10.0, max_value=1000.0),
)
def test_a_line_is_found_through_an_outlier(
    lengths: list[int], slope: float, overhead_s: float, outlier_s: float
) -> None:
    seen = [MoveObservation(length, slope * length + overhead_s) for length in lengths]
    model = fit_move(seen)
    assert model.seconds(1000) == pytest.approx(slope * 1000 + overhead_s, rel=1e-3, abs=1e-6)
    if len(seen) >= 8:
        disturbed = fit_move([*seen, MoveObservation(4000, outlier_s)])
        assert disturbed.seconds(1000) == pytest.approx(slope * 1000 + overhead_s, rel=0.5, abs=0.5)


def test_without_observations_the_prior_stands() -> None:
    assert fit_move([]) == PRIOR_MOVE

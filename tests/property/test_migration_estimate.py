"""Laws of what a migration costs and how a cache travels."""

from __future__ import annotations

from random import Random

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


# One length of each octave: what is all alike tells of no slope.
apart = st.lists(st.integers(16, 8192), min_size=6, unique_by=lambda count: count.bit_length())


@given(lengths=apart, slope=st.floats(1e-6, 1e-2), overhead_s=st.floats(0.0, 2.0))
def test_a_line_is_found(lengths: list[int], slope: float, overhead_s: float) -> None:
    model = fit_move([MoveObservation(length, slope * length + overhead_s) for length in lengths])
    assert model.seconds(1000) == pytest.approx(slope * 1000 + overhead_s, rel=1e-3, abs=1e-6)


@given(
    slope=st.floats(1e-5, 1e-2),
    overhead_s=st.floats(0.01, 2.0),
    wild=st.lists(st.tuples(st.integers(0, 39), st.floats(0.0, 1000.0)), max_size=8),
    chance=st.randoms(use_true_random=False),
)
def test_a_fifth_of_wild_moves_hardly_changes_the_estimate(
    slope: float, overhead_s: float, wild: list[tuple[int, float]], chance: Random
) -> None:
    lengths = [64 + 50 * number for number in range(40)]
    seen = [
        MoveObservation(length, (slope * length + overhead_s) * chance.uniform(0.95, 1.05))
        for length in lengths
    ]
    for index, seconds in wild:
        seen[index] = MoveObservation(lengths[index], seconds)
    chance.shuffle(seen)
    model = fit_move(seen)
    for length in (64, 500, 2000):
        little_s = 0.05 * model.seconds(2000)
        assert model.seconds(length) == pytest.approx(slope * length + overhead_s, rel=0.2, abs=little_s)


@given(length=tokens, took_s=st.floats(0.001, 30.0), count=st.integers(1, 20))
def test_one_length_again_and_again_is_foretold_as_it_was(length: int, took_s: float, count: int) -> None:
    model = fit_move([MoveObservation(length, took_s)] * count)
    assert model.seconds(length) == pytest.approx(took_s, rel=1e-6)


def test_without_observations_the_prior_stands() -> None:
    assert fit_move([]) == PRIOR_MOVE

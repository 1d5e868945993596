"""Laws of the sampler."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.engine.sampling import GREEDY, Sampling, choose, race_times, top_logprobs

SCORES = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, -4.0])
PROBABILITIES = torch.softmax(SCORES.double(), dim=0)


def draws(sampling: Sampling, count: int = 4000, scores: torch.Tensor = SCORES) -> Counter[int]:
    return Counter(
        choose(scores, sampling, position=position, prompt=(), generated=()) for position in range(count)
    )


def test_greedy_takes_the_likeliest() -> None:
    assert choose(SCORES, GREEDY, position=0, prompt=(), generated=()) == 4


def test_scores_are_left_alone() -> None:
    before = SCORES.clone()
    everything = Sampling(
        temperature=0.5, top_p=0.5, top_k=2, min_p=0.1, repetition_penalty=2.0, logit_bias={1: 5.0}
    )
    choose(SCORES, everything, position=0, prompt=(1, 2), generated=(3,))
    assert torch.equal(SCORES, before)


def test_draws_follow_the_distribution() -> None:
    drawn = draws(Sampling(temperature=1.0, seed=3))
    for token, probability in enumerate(PROBABILITIES.tolist()):
        spread = math.sqrt(probability * (1 - probability) / 4000)
        assert abs(drawn[token] / 4000 - probability) < 4 * spread + 1e-9


def test_temperature_sharpens() -> None:
    cold, hot = draws(Sampling(temperature=0.3)), draws(Sampling(temperature=3.0))
    assert cold[4] > draws(Sampling(temperature=1.0))[4] > hot[4]


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(draws(Sampling(temperature=2.0, top_k=2))) == {4, 0}


def test_top_p_keeps_the_smallest_nucleus() -> None:
    # 0.632, 0.232, 0.086 …: the first alone holds 0.6, the first two 0.8.
    assert set(draws(Sampling(temperature=1.0, top_p=0.6))) == {4}
    assert set(draws(Sampling(temperature=1.0, top_p=0.8))) == {4, 0}
    assert set(draws(Sampling(temperature=1.0, top_p=1e-9))) == {4}


def test_top_p_over_a_flat_distribution_needs_more_than_the_candidates() -> None:
    flat = torch.zeros(3000)
    drawn = draws(Sampling(temperature=1.0, top_p=0.9), scores=flat)
    assert len(drawn) > 1500


def test_min_p_is_relative_to_the_likeliest() -> None:
    floor = float(PROBABILITIES[1] / PROBABILITIES[4])
    assert set(draws(Sampling(temperature=1.0, min_p=floor * 0.99))) == {4, 0, 1}
    assert set(draws(Sampling(temperature=1.0, min_p=floor * 1.01))) == {4, 0}


def test_repetition_penalty_covers_prompt_and_output() -> None:
    strong = Sampling(repetition_penalty=4.0)
    assert choose(SCORES, strong, position=0, prompt=(4,), generated=()) == 0
    assert choose(SCORES, strong, position=1, prompt=(4,), generated=(0,)) == 1


def test_presence_and_frequency_count_output_only() -> None:
    assert choose(SCORES, Sampling(presence_penalty=1.5), position=0, prompt=(4, 4), generated=()) == 4
    assert choose(SCORES, Sampling(presence_penalty=1.5), position=1, prompt=(), generated=(4,)) == 0
    twice = Sampling(frequency_penalty=0.6)
    assert choose(SCORES, twice, position=1, prompt=(), generated=(4,)) == 4
    assert choose(SCORES, twice, position=2, prompt=(), generated=(4, 4)) == 0


def test_bias_adds() -> None:
    assert choose(SCORES, Sampling(logit_bias={5: 100.0}), position=0, prompt=(), generated=()) == 5
    assert choose(SCORES, Sampling(logit_bias={4: -100.0}), position=0, prompt=(), generated=()) == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_numbers_are_fixed_by_seed_and_position(seed: int, position: int) -> None:
    times = race_times(8, seed=seed, position=position)
    assert np.isfinite(times).all() and (times > 0).all()
    assert (times == race_times(8, seed=seed, position=position)).all()
    assert (times != race_times(8, seed=seed, position=position + 1)).all()
    # A token's own, however many there are.
    assert (times[:5] == race_times(5, seed=seed, position=position)).all()


def test_numbers_are_the_same_on_every_machine() -> None:
    assert race_times(3, seed=1, position=2).tolist() == pytest.approx(
        [0.8166879223072422, 1.9495746518373942, 1.1508020060534163], rel=1e-14
    )


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 1000))
def test_a_hair_of_rounding_changes_hardly_a_draw(seed: int, position: int) -> None:
    """Devices differ in the last bits; near-ties that swap places must not change the draw."""
    torch.manual_seed(seed)
    scores = torch.randn(500).round(decimals=1)  # many exact ties
    nudged = scores + torch.randn(500) * 1e-9
    sampling = Sampling(temperature=1.0, seed=seed)
    assert choose(scores, sampling, position=position, prompt=(), generated=()) == choose(
        nudged, sampling, position=position, prompt=(), generated=()
    )


def test_a_flat_tail_does_not_magnify_rounding() -> None:
    """Of a thousand draws over a vocabulary's long tail, a relative error of 1e-5 changes next to none."""
    torch.manual_seed(1)
    scores = torch.randn(20_000) * 3
    nudged = scores + torch.randn(20_000) * 1e-5
    sampling = Sampling(temperature=1.0, seed=4)
    changed = sum(
        choose(scores, sampling, position=position, prompt=(), generated=())
        != choose(nudged, sampling, position=position, prompt=(), generated=())
        for position in range(1000)
    )
    assert changed <= 1


@given(st.integers(0, 1000))
def test_excluded_tokens_are_never_drawn(position: int) -> None:
    scores = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")])
    sampling = Sampling(temperature=1.0, seed=9)
    assert choose(scores, sampling, position=position, prompt=(), generated=()) in {1, 3}


def test_logprobs_are_the_models_own() -> None:
    logprob, alternatives = top_logprobs(SCORES, 0, 2)
    assert logprob == pytest.approx(math.log(float(PROBABILITIES[0])), abs=1e-5)
    assert [token for token, _ in alternatives] == [4, 0]

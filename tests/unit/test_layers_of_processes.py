"""The two lowest layers of warmth, spare processes and skeletons in them: how long each is worth keeping."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from firstlight.database.model_lives import model_life
from firstlight.domain.autoscaling.arrivals import ArrivalHistory
from firstlight.domain.autoscaling.choice import KEEP_ALIVE_POLICIES, keep_alive_policy
from firstlight.domain.autoscaling.keep_alive import ModelLife
from firstlight.domain.autoscaling.processes import processes_kept
from firstlight.domain.autoscaling.warmth import Layer
from firstlight.domain.names import CheckpointId
from gpu_worker.host.kept_for import KeptFor

STARTS = [("dram", 1.0), ("dram", 1.2), ("ssd", 9.0)]
OFTEN_PER_S, HARDLY_EVER_PER_S = 0.1, 0.00001


def life(*, gap_s: float = 30.0, starts: list[tuple[str, float]] = STARTS, rate_per_s: float) -> ModelLife:
    history = ArrivalHistory()
    for _ in range(20):
        history = history.with_gap(gap_s)
    return model_life(history=history, fixed_keep_alive_s=300.0, starts=starts, all_rate_per_s=rate_per_s)


@pytest.mark.parametrize("rate_per_s", [0.0, HARDLY_EVER_PER_S, OFTEN_PER_S])
@pytest.mark.parametrize("gap_s", [0.5, 30.0, 900.0, 12_000.0, 50_000.0])
@pytest.mark.parametrize("starts", [[], STARTS[:2], STARTS])
@pytest.mark.parametrize("longest_s", [60.0, 3600.0])
def test_a_lower_layer_lives_at_least_as_long_as_those_above(
    rate_per_s: float, gap_s: float, starts: list[tuple[str, float]], longest_s: float
) -> None:
    policy = keep_alive_policy("layered", longest_s=longest_s)
    known = life(gap_s=gap_s, starts=starts, rate_per_s=rate_per_s)
    times_s = [policy.times_to_live_s(known)[layer] for layer in Layer]
    assert all(lower >= upper for lower, upper in pairwise(times_s))
    assert max(times_s) < inf


def test_spares_are_kept_by_how_often_any_model_is_asked_for() -> None:
    policy = keep_alive_policy("layered")
    rare = policy.times_to_live_s(life(gap_s=12_000.0, rate_per_s=HARDLY_EVER_PER_S))
    shared = policy.times_to_live_s(life(gap_s=12_000.0, rate_per_s=OFTEN_PER_S))
    assert shared[Layer.SPARE] > 300.0, "somebody comes every ten seconds"
    assert rare[Layer.SPARE] == rare[Layer.ARCHITECTURE], "for nobody's sake but the model's own"
    assert rare[Layer.ARCHITECTURE] == shared[Layer.ARCHITECTURE] == 0.0


@pytest.mark.parametrize("rate_per_s", [0.0, OFTEN_PER_S])
def test_the_upper_layers_do_not_see_those_below(rate_per_s: float) -> None:
    policy = keep_alive_policy("layered")
    known = life(rate_per_s=rate_per_s)
    times_s = policy.times_to_live_s(known)
    upper = {layer: cost for layer, cost in known.costs.items() if layer in (Layer.GPU, Layer.DRAM)}
    alone = ModelLife(history=known.history, fixed_keep_alive_s=300.0, start_s=known.start_s, costs=upper)
    assert {layer: times_s[layer] for layer in upper} == {
        layer: policy.times_to_live_s(alone)[layer] for layer in upper
    }


@pytest.mark.parametrize("name", [name for name in KEEP_ALIVE_POLICIES if name != "layered"])
def test_the_other_policies_have_nothing_to_say_to_hosts(name: str) -> None:
    times_s = {"m": keep_alive_policy(name).times_to_live_s(life(rate_per_s=OFTEN_PER_S))}
    kept = processes_kept(times_s, idle_s={"m": 1e6}, checkpoints={"m": CheckpointId("m@aaaa")})
    assert not kept.is_said


def test_what_is_shared_is_kept_for_whoever_wants_it_longest() -> None:
    one, two, three = CheckpointId("one@aaaa"), CheckpointId("two@aaaa"), CheckpointId("three@aaaa")
    times_s = {
        "a": {Layer.ARCHITECTURE: 100.0, Layer.SPARE: 200.0},
        "also-a": {Layer.ARCHITECTURE: 100.0, Layer.SPARE: 200.0},
        "b": {Layer.ARCHITECTURE: 100.0, Layer.SPARE: 200.0},
    }
    kept = processes_kept(
        times_s,
        idle_s={"a": 150.0, "also-a": 60.0, "b": 150.0},
        checkpoints={"a": one, "also-a": one, "b": two, "never-asked-for": three},
    )
    assert kept.skeletons_s == {one: 40.0, two: 0.0} and kept.spares_s == 140.0
    assert kept.of({two: None, three: None}).skeletons_s == {two: 0.0}
    nobody = processes_kept({}, idle_s={}, checkpoints={"never-asked-for": three})
    assert not nobody.is_said


def test_a_word_ends_what_it_names_and_is_forgotten() -> None:
    word = KeptFor(skeletons_until_s={"a": 5.0}, spares_until_s=10.0, counts_until_s=100.0)
    assert [word.has_skeleton("a", now_s) for now_s in (4.9, 5.0, 99.9, 100.0)] == [True, False, False, True]
    assert [word.has_spares(now_s) for now_s in (9.9, 10.0, 99.9, 100.0)] == [True, False, False, True]
    assert all(word.has_skeleton("b", now_s) for now_s in (0.0, 5.0, 200.0))
    assert [word.spares_change_in_s(now_s) for now_s in (4.0, 10.0, 100.0)] == [6.0, 90.0, None]
    assert KeptFor().spares_change_in_s(0.0) is None and KeptFor().has_spares(1e9)
    started = word.but_wanted("a")
    assert started.has_spares(50.0) and started.has_skeleton("a", 50.0)

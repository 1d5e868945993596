"""What was measured of a machine becomes a scenario that gives it back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random
from statistics import median

import pytest

from simulator.calibration import Measured, blocks_of, scenario_of, startup_s, trace_of
from simulator.entities import Request
from simulator.running import play
from simulator.workload import models_of

MEASURED = Measured(
    dram_s=(0.20, 0.20, 0.20),
    ssd_s=(0.70, 0.70, 0.70),
    beside_s=(0.50, 0.50),
    after_s=(0.35,),
    warm_s=(0.10, 0.10),
    answer_s=(0.45, 0.45),
    attach_s=(0.03,) * 3,
    control_s=(0.05,) * 3,
    load_s=(0.60,) * 3,
    size_bytes=1_000_000_000,
    prompt_tokens=20,
    output_tokens=8,
)


def startups_s(measured: Measured, arrivals: list[tuple[float, int]]) -> list[float]:
    scenario = scenario_of(measured, models=3, keep_alive_s=1.0, duration_s=60.0)
    models = models_of(scenario)
    requests = [Request(index, models[model], at_s, 20, 8) for index, (at_s, model) in enumerate(arrivals)]
    play(scenario, "firstlight", models, requests, 0)
    assert all(request.first_token_s is not None for request in requests)
    return [startup_s((one.first_token_s or 0.0) - one.arrival_s, [0.1]) for one in requests]


def test_a_start_from_each_tier_takes_what_was_measured() -> None:
    # The second comes while the first is kept for a second, the third long after it.
    cold_s, joins_s, again_s = startups_s(MEASURED, [(0.0, 0), (1.4, 0), (30.0, 0)])
    assert cold_s == pytest.approx(0.70)
    # It joins while the next engine is made: its first token, 0.1 s otherwise, takes 1.5 times as long.
    assert joins_s == pytest.approx(0.05)
    assert again_s == pytest.approx(0.20, abs=0.001)


def test_a_load_is_hidden_as_far_as_it_was() -> None:
    # 0.6 s of load cost a first token 0.5.
    assert MEASURED.hidden_load == pytest.approx(1 / 6)
    assert replace(MEASURED, ssd_s=(0.2,)).hidden_load == 1
    assert replace(MEASURED, ssd_s=(2.0,)).hidden_load == 0


def test_starts_in_the_same_moment_slow_each_other_down_as_measured() -> None:
    assert MEASURED.slowdown(MEASURED.beside_s) == pytest.approx(2.0)
    assert MEASURED.slowdown([]) == MEASURED.slowdown([0.0]) == 1
    lead_in = [(0.0, 0), (0.0, 1)]
    *_, first_s, second_s = startups_s(MEASURED, [*lead_in, (20.0, 0), (20.0, 1)])
    # Control and attach of the first (80 ms) were over before they met, at most.
    assert second_s == pytest.approx(0.50, abs=0.01)
    assert 0.41 <= first_s <= 0.51


def test_a_start_soon_after_another_takes_what_was_measured() -> None:
    *_, soon_s, later_s = startups_s(MEASURED, [(0.0, 0), (0.0, 1), (20.0, 0), (21.7, 1), (40.0, 1)])
    assert (soon_s, later_s) == pytest.approx((0.35, 0.20), abs=0.01)


def test_noise_is_that_of_single_starts_about_their_own_tier() -> None:
    assert MEASURED.noise == 0
    # ln 2 above and below the median, and two starts at their medians.
    assert replace(MEASURED, dram_s=(0.1, 0.2, 0.4), ssd_s=(1.0,)).noise == pytest.approx(
        0.693 / 2**0.5, abs=0.001
    )


def test_a_machine_that_becomes_slower_was_between_the_two() -> None:
    later = replace(MEASURED, dram_s=(0.4,) * 3, ssd_s=(0.9,) * 3, warm_s=(0.3, 0.3), attach_s=(0.16,) * 3)
    between = MEASURED.joined(later)
    assert (median(between.dram_s), median(between.ssd_s)) == pytest.approx((0.30, 0.80))
    assert (median(between.warm_s), median(between.attach_s)) == pytest.approx((0.2, 0.095))
    assert (between.size_bytes, between.noise > 0) == (MEASURED.size_bytes, True)


@pytest.mark.parametrize("count", [1, 4, 7, 60])
def test_blocks_are_the_trace_with_its_gaps(count: int) -> None:
    trace = trace_of(50, models=3, mean_gap_s=2.0, random=Random(1))
    blocks = blocks_of(trace, count)
    assert len(blocks) == min(count, 50)
    assert [model for block in blocks for _, model in block] == [model for _, model in trace]
    gaps = [later - sooner for block in blocks for (sooner, _), (later, _) in pairwise([(0.0, 0), *block])]
    assert gaps == pytest.approx([later - sooner for (sooner, _), (later, _) in pairwise([(0.0, 0), *trace])])


def test_what_the_engine_computes_is_no_start() -> None:
    assert startup_s(0.35, [0.1, 0.12, 0.11]) == pytest.approx(0.24)
    assert startup_s(0.09, [0.1]) == 0.0


def test_a_trace_is_of_its_seed() -> None:
    trace = trace_of(50, models=3, mean_gap_s=2.0, random=Random(1))
    assert trace == trace_of(50, models=3, mean_gap_s=2.0, random=Random(1))
    assert [at_s for at_s, _ in trace] == sorted(at_s for at_s, _ in trace)
    assert {model for _, model in trace} == {0, 1, 2}

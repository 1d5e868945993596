"""What was measured of a machine becomes a scenario that gives it back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random
from statistics import median

import pytest

from firstlight.domain.fleet import Tier
from simulator.calibration import Measured, blocks_of, scenario_of, startup_s, trace_of
from simulator.entities import Request
from simulator.running import play
from simulator.workload import models_of

MEASURED = Measured(
    dram_s=(0.20, 0.20, 0.20),
    ssd_s=(0.70, 0.70, 0.70),
    warm_s=(0.10, 0.10),
    answer_s=(0.45, 0.45),
    attach_s=0.08,
    size_bytes=1_000_000_000,
    prompt_tokens=20,
    output_tokens=8,
)


def test_a_start_from_each_tier_takes_what_was_measured() -> None:
    scenario = scenario_of(MEASURED, models=3, keep_alive_s=1.0, duration_s=60.0)
    models = models_of(scenario)
    requests = [Request(index, models[0], at_s, 20, 8) for index, at_s in enumerate((0.0, 1.3, 30.0))]
    play(scenario, "firstlight", models, requests, 0)
    cold, joins, again = requests
    assert cold.start_tier is Tier.SSD and cold.waited_s == pytest.approx(0.70)
    # It ends 0.1 s of prefill and 7 tokens at 20 a second after 0.7, and is kept for a second.
    assert joins.waited_s == 0
    assert again.start_tier is Tier.DRAM and again.waited_s == pytest.approx(0.20, abs=0.001)
    assert cold.end_s == pytest.approx(0.70 + 0.35, abs=0.11)


def test_noise_is_that_of_single_starts_about_their_own_tier() -> None:
    assert MEASURED.noise == 0
    wide = Measured(
        dram_s=(0.1, 0.2, 0.4), ssd_s=(1.0,), warm_s=(0.1,), answer_s=(0.2,), attach_s=0.1,
        size_bytes=1, prompt_tokens=1, output_tokens=2,
    )  # fmt: skip
    # ln 2 above and below the median, and two starts at their medians.
    assert wide.noise == pytest.approx(0.693 / 2**0.5, abs=0.001)


def test_a_machine_that_becomes_slower_was_between_the_two() -> None:
    later = replace(MEASURED, dram_s=(0.4,) * 3, ssd_s=(0.9,) * 3, warm_s=(0.3, 0.3), attach_s=0.16)
    between = MEASURED.joined(later)
    assert (median(between.dram_s), median(between.ssd_s)) == pytest.approx((0.30, 0.80))
    assert (median(between.warm_s), between.attach_s) == pytest.approx((0.2, 0.12))
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

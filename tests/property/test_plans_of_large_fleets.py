"""Where the search meets its limits: what it answers is possible, and no worse than what it promises."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.scheduler_fleet import FleetShape, make_fleet, make_requests
from firstlight.domain.scheduler import Migrate, Place, decide
from tests.property.plan_brute_force import could_take, free, read_plan, total_of


@pytest.mark.parametrize("load", [0.9, 1.0])
def test_a_plan_is_possible_and_no_dearer_than_any_that_frees_nobody(load: float) -> None:
    snapshot, zipf = make_fleet(FleetShape(hosts=60, models=300, load=load), Random(3))
    answered = []
    for request in make_requests(zipf, 40):
        decision = decide(request, snapshot)
        if not isinstance(decision, Place | Migrate):
            continue
        answered.append(decision)
        host, plan = read_plan(decision, request, snapshot)
        total = total_of(host, plan, request, snapshot)
        assert abs(total.total_s - decision.estimate.total_s) < 1e-6
        able = [one for one in snapshot.hosts if could_take(request.model, one, request)]
        at_least_s = min(total_of(one, (), request, snapshot).cost_s for one in able)
        on_free = [
            total_of(one, (), request, snapshot).cost_s
            for one in able
            if free(one) >= request.model.gpu_count
        ]
        assert at_least_s - 1e-6 <= total.cost_s <= min(on_free, default=total.cost_s) + 2e-4
    assert any(isinstance(decision, Migrate) for decision in answered)

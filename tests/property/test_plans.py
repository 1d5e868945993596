"""Laws of plans that free GPUs first: brute force agrees, and nobody is touched who must not be."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st

from firstlight.domain.estimator import estimate_start, givers_of
from firstlight.domain.fleet import FleetSnapshot, StartRequest
from firstlight.domain.fleet_costs import FleetCosts
from firstlight.domain.fleet_index import index_of
from firstlight.domain.scheduler import Migrate, Place, Reject, VictimAction, Wait, decide
from firstlight.domain.start_costs import StartCosts
from tests.property.plan_brute_force import all_plans, could_take, read_plan, total_of
from tests.property.tenanted_fleets import tenanted_problems

Problem = tuple[StartRequest, FleetSnapshot]
EQUAL_S = 2.1e-4


@settings(max_examples=400)
@given(tenanted_problems())
def test_no_plan_is_cheaper_than_the_one_that_is_chosen(problem: Problem) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    event(type(decision).__name__)
    in_time = [
        plan
        for plan in all_plans(request, snapshot)
        if request.deadline_s is None or plan.total_s <= request.deadline_s
    ]
    cheapest_s = min((plan.cost_s for plan in in_time), default=None)
    if isinstance(decision, Place | Migrate):
        chosen = total_of(*read_plan(decision, request, snapshot), request, snapshot)
        assert cheapest_s is not None and abs(chosen.cost_s - cheapest_s) <= EQUAL_S
        assert abs(chosen.total_s - decision.estimate.total_s) <= 1e-6
        if isinstance(decision, Migrate):
            event(f"{len(decision.victims)} victims")
    elif isinstance(decision, Wait) and cheapest_s is not None:
        assert decision.ready_in_s is not None and decision.ready_in_s <= cheapest_s + EQUAL_S
    elif isinstance(decision, Reject):
        assert cheapest_s is None


@given(tenanted_problems())
def test_a_decision_takes_gpus_that_are_free_once_its_victims_have_gone(problem: Problem) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    if not isinstance(decision, Place | Migrate):
        return
    host = next(host for host in snapshot.hosts if host.host_id == decision.host_id)
    gone = {victim.instance_id for victim in decision.victims} if isinstance(decision, Migrate) else set()
    usable = {gpu.index for gpu in host.gpus if gpu.instance_id is None or gpu.instance_id in gone}
    assert could_take(request.model, host, request)
    assert set(decision.gpu_indices) <= usable
    assert len(set(decision.gpu_indices)) == len(decision.gpu_indices) == request.model.gpu_count


@given(tenanted_problems())
def test_only_those_go_who_may(problem: Problem) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    if not isinstance(decision, Migrate):
        return
    assert request.may_free
    running = {one.instance_id: one for one in snapshot.running}
    gone = [victim.instance_id for victim in decision.victims]
    assert len(gone) == len(set(gone))
    actions = [victim.action for victim in decision.victims]
    assert actions == sorted(actions), "evictions come first"
    for victim in decision.victims:
        one = running[victim.instance_id]
        assert one.model.priority <= request.model.priority
        assert one.idle_s is not None if victim.action is VictimAction.EVICT else one.is_movable
    for model in {running[instance_id].model.name for instance_id in gone}:
        before = [one for one in snapshot.running if one.model.name == model]
        ended = {v.instance_id for v in decision.victims if v.action is VictimAction.EVICT}
        left = [one for one in before if one.instance_id not in ended]
        assert len(left) >= min(before[0].model.min_instances, len(before))


@given(tenanted_problems())
def test_waiting_for_gpus_is_bounded_by_what_it_saves(problem: Problem) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    if not isinstance(decision, Wait) or decision.instance_id is not None:
        return
    now = [plan.cost_s for plan in all_plans(request, snapshot)]
    in_time = [cost for cost in now if request.deadline_s is None or cost <= request.deadline_s]
    assert decision.ready_in_s is not None
    if in_time:
        assert request.waited_s is not None
        assert request.waited_s + decision.ready_in_s < min(in_time)


@given(tenanted_problems())
def test_quick_costs_are_the_estimators(problem: Problem) -> None:
    request, snapshot = problem
    givers = givers_of(request.model, snapshot)
    index = index_of(snapshot)
    columns = FleetCosts(request.model, snapshot, index, givers).total_s().tolist()
    alone = StartCosts(request.model, snapshot)
    for (host, _), seconds in zip(index.ready, columns, strict=True):
        estimate = estimate_start(request.model, host, snapshot, givers=givers)
        assert abs(seconds - estimate.total_s) <= 1e-9 * max(1.0, estimate.total_s)
        from_source = estimate_start(request.model, host, snapshot)
        assert abs(alone.total_s(host) - from_source.total_s) <= 1e-9 * max(1.0, from_source.total_s)


@given(tenanted_problems())
def test_every_host_is_explained_and_the_chosen_one_as_it_was_chosen(problem: Problem) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    assert len(decision.candidates) in (0, len(snapshot.hosts))
    for candidate, host in zip(decision.candidates, snapshot.hosts, strict=False):
        assert candidate.host_id == host.host_id
        assert (candidate.estimate is None) == (candidate.reason is not None)
        if isinstance(decision, Place | Migrate) and host.host_id == decision.host_id:
            assert candidate.estimate == decision.estimate
            assert candidate.gpu_indices == decision.gpu_indices
            assert candidate.victims == (decision.victims if isinstance(decision, Migrate) else ())


@given(tenanted_problems(), st.randoms(use_true_random=False))
def test_the_order_of_hosts_and_instances_does_not_matter(problem: Problem, chance: object) -> None:
    request, snapshot = problem
    turned = replace(
        snapshot, hosts=tuple(reversed(snapshot.hosts)), running=tuple(reversed(snapshot.running))
    )
    one, other = decide(request, snapshot), decide(request, turned)
    assert type(one) is type(other)
    if isinstance(one, Place | Migrate) and isinstance(other, Place | Migrate):
        assert (one.host_id, one.gpu_indices) == (other.host_id, other.gpu_indices)
        assert one.estimate == other.estimate


@given(tenanted_problems(), st.integers(0, 3))
def test_a_model_never_exceeds_its_maximum(problem: Problem, maximum: int) -> None:
    request, snapshot = problem
    request = replace(request, model=replace(request.model, max_instances=maximum))
    live = [one for one in snapshot.running if one.model.name == request.model.name]
    live_starts = [start for start in snapshot.starts if start.model == request.model.name]
    decision = decide(request, snapshot)
    if isinstance(decision, Place | Migrate):
        assert len(live) + len(live_starts) < maximum


@given(tenanted_problems())
def test_an_instance_that_is_replaced_does_not_count(problem: Problem) -> None:
    request, snapshot = problem
    own = [one.instance_id for one in snapshot.running if one.model.name == request.model.name]
    own += [start.instance_id for start in snapshot.starts if start.model == request.model.name]
    if len(own) != 1:
        return
    limited = replace(request, replaces=own[0], model=replace(request.model, max_instances=1))
    unlimited, decision = decide(request, snapshot), decide(limited, snapshot)
    assert type(decision) is type(unlimited)
    if isinstance(decision, Place | Migrate) and isinstance(unlimited, Place | Migrate):
        assert decision.estimate == unlimited.estimate

"""Startup-time-optimized placement: a pure function of a snapshot.

`decide` compares every plan that would bring the model up and picks the cheapest: seconds until it answers,
plus what the plan takes from others. The caller makes the choice real in one transaction.

Plans are
- a start on free GPUs;
- a start on GPUs that some instances of one host give up first (`victims`): idle ones end, others go on at a
  host that has their checkpoint in DRAM or on SSD and either enough free GPUs, or enough together with those
  of one idle instance that ends for it, or an idle instance of the same model;
- waiting for a start of the same model that is under way;
- waiting for GPUs that are expected back, and a start there then.

Of these the answer is the best as long as the search meets none of its limits: `plan_search.HOSTS_AT_MOST`,
`destinations.DESTINATIONS_AT_MOST`, `victims.BRANCHES_AT_MOST`. Beyond, it costs no more than the best plan
that frees nobody's GPUs, nor than any plan looked at; and it is above the best there is by at most what it is
above the soonest start that would be possible were all GPUs free. Costs that differ by less than a tenth of a
millisecond are equal. Ties: least evicted bytes, then tightest fit of GPUs, then host id. (docs/adr/0017)
"""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.domain.candidates import candidate_of, candidates_of
from firstlight.domain.expectations import Expectation, soonest_return
from firstlight.domain.fleet import FleetSnapshot, StartRequest, StartUnderWay
from firstlight.domain.fleet_index import index_of
from firstlight.domain.instance_limit import at_limit
from firstlight.domain.plan_search import Plan, PlanSearch
from firstlight.domain.plans import (
    Candidate,
    Candidates,
    Decision,
    Migrate,
    Place,
    Reject,
    Victim,
    VictimAction,
    Wait,
)
from firstlight.domain.victims import DIGITS

__all__ = [
    "Candidate",
    "Candidates",
    "Decision",
    "Migrate",
    "Place",
    "Reject",
    "Victim",
    "VictimAction",
    "Wait",
    "decide",
]

RETRY_AFTER_S = 5.0
_HAIR_S = 10**-DIGITS


def decide(request: StartRequest, snapshot: FleetSnapshot) -> Decision:
    """Choose the plan with the least cost among those that make the deadline.

    A start of the same model under way wins unless a new one would be sooner. GPUs that are expected back are
    waited for if nothing else can be done. Those whose holders have nothing left to do are also waited for,
    as long as `waited_s` and what is still to come are less than the best plan that can begin now: so whoever
    is told to wait loses at most as much again as that plan takes, even if nothing comes back. What
    no plan can make in time is rejected at once.
    Raises: InvalidEstimate for a host whose edges have no meaning.
    """
    if (refusal := at_limit(request, snapshot)) is not None:
        return refusal
    search = PlanSearch(request, snapshot)
    candidates = Candidates(lambda: candidates_of(request, snapshot, search), length=len(snapshot.hosts))
    best = search.best(deadline_s=request.deadline_s)
    under_way = _soonest_start(request, snapshot)
    if under_way is not None and _is_worth_joining(under_way, best, request):
        return _join(under_way, candidates)
    within_s = _patience_s(best, request)
    expected = _expected(request, snapshot, search, within_s, has_choice=best is not None)
    if expected is not None and _makes(expected.total_s, request):
        return _wait(expected, candidates, is_alone=best is None)
    if best is None:
        return _reject(request, search, under_way, expected, candidates)
    return _begin(best, request, snapshot, search, candidates)


def _makes(seconds: float, request: StartRequest) -> bool:
    return request.deadline_s is None or seconds <= request.deadline_s


def _soonest_start(request: StartRequest, snapshot: FleetSnapshot) -> StartUnderWay | None:
    if not request.may_wait:
        return None
    own = [start for start in snapshot.starts if start.model == request.model.name]
    return min(own, key=lambda start: (start.ready_in_s, start.instance_id), default=None)


def _is_worth_joining(start: StartUnderWay, best: Plan | None, request: StartRequest) -> bool:
    return _makes(start.ready_in_s, request) and (best is None or best.key[0] >= start.ready_in_s)


def _patience_s(best: Plan | None, request: StartRequest) -> float:
    """A start on GPUs that have to come back first must take less than this to be waited for."""
    if best is None:
        return float("inf")
    return 0.0 if request.waited_s is None else best.key[0] - request.waited_s - _HAIR_S


def _expected(
    request: StartRequest, snapshot: FleetSnapshot, search: PlanSearch, within_s: float, *, has_choice: bool
) -> Expectation | None:
    returning = index_of(snapshot).returning if has_choice else None
    if within_s <= 0 or (has_choice and not returning):
        return None
    return soonest_return(request, search.crowded(), within_s=within_s, only_given_up=returning)


def _begin(
    plan: Plan,
    request: StartRequest,
    snapshot: FleetSnapshot,
    search: PlanSearch,
    candidates: Sequence[Candidate],
) -> Place | Migrate:
    chosen = candidate_of(plan.host, plan.freed, request, snapshot, search)
    assert chosen.estimate is not None, "a plan has an estimate"
    if plan.freed is None:
        return Place(chosen.host_id, chosen.gpu_indices, chosen.estimate, candidates)
    return Migrate(chosen.host_id, chosen.gpu_indices, chosen.victims, chosen.estimate, candidates)


def _join(start: StartUnderWay, candidates: Sequence[Candidate]) -> Wait:
    return Wait("a start of this model is under way", start.ready_in_s, start.instance_id, candidates)


def _wait(expected: Expectation, candidates: Sequence[Candidate], *, is_alone: bool) -> Wait:
    reason = (
        "all GPUs are taken; one is expected back"
        if is_alone
        else f"GPUs of {expected.host_id} are expected back; a start there would be sooner than one now"
    )
    return Wait(reason, expected.free_in_s, None, candidates)


def _reject(
    request: StartRequest,
    search: PlanSearch,
    under_way: StartUnderWay | None,
    expected: Expectation | None,
    candidates: Sequence[Candidate],
) -> Reject:
    late = search.best(deadline_s=None) if request.deadline_s is not None else None
    ready_s = [
        *([late.total_s] if late is not None else []),
        *([under_way.ready_in_s] if under_way is not None else []),
        *([expected.total_s] if expected is not None else []),
    ]
    if not ready_s:
        return Reject(_why_not(candidates), RETRY_AFTER_S, candidates)
    assert request.deadline_s is not None, "without a deadline any of these would do"
    soonest_s = min(ready_s)
    reason = f"the soonest start takes {soonest_s:.1f} s, the deadline is {request.deadline_s:.1f} s"
    return Reject(reason, soonest_s, candidates)


def _why_not(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "no GPU host has joined the fleet"
    return "no host can take the start: " + "; ".join(
        f"{candidate.host_id}: {candidate.reason}" for candidate in candidates
    )

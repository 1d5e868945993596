"""Explaining plans: which GPUs, who goes where, and the estimate term by term."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from firstlight.domain.estimator import estimate_start
from firstlight.domain.fleet import FleetSnapshot, Host, StartRequest
from firstlight.domain.names import HostId
from firstlight.domain.obstacles import obstacle
from firstlight.domain.plan_search import PlanSearch
from firstlight.domain.plans import Candidate, Victim, VictimAction
from firstlight.domain.victims import Going, VictimSet


def candidates_of(
    request: StartRequest, snapshot: FleetSnapshot, search: PlanSearch
) -> tuple[Candidate, ...]:
    """One per host, in the snapshot's order."""
    return tuple(_look_at(host, request, snapshot, search) for host in snapshot.hosts)


def candidate_of(
    host: Host, freed: VictimSet | None, request: StartRequest, snapshot: FleetSnapshot, search: PlanSearch
) -> Candidate:
    """A start on `host`, after the victims of `freed` have gone."""
    estimate = estimate_start(request.model, host, snapshot, givers=search.givers)
    gpus = _free(host)
    victims: tuple[Victim, ...] = ()
    if freed is not None:
        estimate = replace(estimate, free_s=freed.delay_s)
        gpus += sorted(index for going in freed.goings for index in going.one.gpu_indices)
        victims = _victims(freed, snapshot.evict_s)
    return Candidate(
        host_id=host.host_id,
        estimate=estimate,
        gpu_indices=tuple(gpus[: request.model.gpu_count]),
        spare_gpus=len(gpus) - request.model.gpu_count,
        victims=victims,
    )


def _look_at(host: Host, request: StartRequest, snapshot: FleetSnapshot, search: PlanSearch) -> Candidate:
    model = request.model
    if (reason := obstacle(model, host, request.excluded_hosts)) is not None:
        return Candidate(host.host_id, None, reason)
    free = len(_free(host))
    if free >= model.gpu_count:
        return candidate_of(host, None, request, snapshot, search)
    if (freed := search.searched.get(host.host_id)) is not None:
        return candidate_of(host, freed, request, snapshot, search)
    return Candidate(host.host_id, None, f"{free} of {model.gpu_count} GPUs free{_unfreed(host, search)}")


def _unfreed(host: Host, search: PlanSearch) -> str:
    if not search.can_free:
        return ""
    if host.host_id in search.searched:
        return "; no instances there can be freed in time, or not as cheaply as elsewhere"
    return "; a start there would take longer even so"


def _free(host: Host) -> list[int]:
    return sorted(gpu.index for gpu in host.gpus if gpu.instance_id is None)


def _victims(freed: VictimSet, evict_s: float) -> tuple[Victim, ...]:
    """Who ends first, here and at destinations; then who moves."""
    ends = [
        Victim(one.instance_id, one.model.name, VictimAction.EVICT, seconds=evict_s)
        for going in freed.goings
        if (one := going.way.evicted if going.way.to is not None else going.one) is not None
    ]
    return (*ends, *_moves(freed.goings))


def _moves(goings: tuple[Going, ...]) -> Iterator[Victim]:
    taken: dict[HostId, int] = {}
    for going in goings:
        way = going.way
        if way.to is None:
            continue
        free = _free(way.to)
        if way.reused is not None:
            gpus = list(way.reused.gpu_indices)
        elif way.evicted is not None:
            gpus = (free + sorted(way.evicted.gpu_indices))[: going.one.model.gpu_count]
        else:
            first = taken.get(way.to.host_id, 0)
            taken[way.to.host_id] = first + way.gpu_count
            gpus = free[first : first + way.gpu_count]
        yield Victim(
            instance_id=going.one.instance_id,
            model_name=going.one.model.name,
            action=VictimAction.MOVE,
            to_host=way.to.host_id,
            to_gpu_indices=tuple(gpus),
            seconds=going.seconds,
            to_instance_id=None if way.reused is None else way.reused.instance_id,
        )

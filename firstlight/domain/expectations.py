"""GPUs that somebody holds and that are expected back."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from firstlight.domain.fleet import Host, StartRequest
from firstlight.domain.names import HostId
from firstlight.domain.plan_search import Crowded


class Expectation(NamedTuple):
    """A start on `host_id` once enough of its GPUs are back; `total_s` counts from now."""

    total_s: float
    host_id: HostId
    free_in_s: float


def soonest_return(
    request: StartRequest,
    crowded: Iterable[Crowded],
    *,
    within_s: float,
    only_given_up: Collection[HostId] | None,
) -> Expectation | None:
    """The soonest start on GPUs that have to come back first; None if none are expected within `within_s`.

    `crowded` is in the order of what a start takes there. Who could begin elsewhere now counts only on GPUs
    whose holders have nothing left to do (`only_given_up`: the hosts of such): when one that is busy ends
    nobody knows.
    """
    soonest: Expectation | None = None
    for start_s, _, host_id, host in crowded:
        if start_s > within_s:
            break
        if only_given_up is not None and host_id not in only_given_up:
            continue
        free_in_s = _fits_in_s(host, request.model.gpu_count, only_given_up=only_given_up is not None)
        if free_in_s is not None and free_in_s + start_s <= within_s:
            found = Expectation(free_in_s + start_s, host_id, free_in_s)
            soonest = found if soonest is None else min(soonest, found)
            within_s = soonest.total_s
    return soonest


def _fits_in_s(host: Host, gpu_count: int, *, only_given_up: bool) -> float | None:
    """Seconds until `gpu_count` GPUs of the host are free, if all that are missing are expected back."""
    times = [
        0.0 if gpu.instance_id is None else gpu.free_in_s
        for gpu in host.gpus
        if gpu.instance_id is None or gpu.is_given_up or not only_given_up
    ]
    known = sorted(time for time in times if time is not None)
    return known[gpu_count - 1] if len(known) >= gpu_count else None

"""Startup-time-optimized placement: a pure function of a snapshot.

`decide` looks at every host, writes down what a start there would cost or why it cannot be, and picks the
soonest. Ties: tightest fit of GPUs, then host id. The caller makes the choice real in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from firstlight.domain.estimator import StartEstimate, estimate_start, givers_of
from firstlight.domain.fleet import FleetSnapshot, Host, Model, StartRequest
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import HostId, InstanceId, ModelName


class VictimAction(StrEnum):
    """What becomes of a running instance whose GPUs are wanted."""

    # It has nothing to do: it ends.
    EVICT = "evict"
    # Its requests go on elsewhere.
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Victim:
    """One instance that gives up its GPUs. `seconds`: from the decision until they are free."""

    instance_id: InstanceId
    model_name: ModelName
    action: VictimAction
    # Where a moved one goes: GPUs that are free, or that an EVICT before it in the plan frees.
    to_host: HostId | None = None
    to_gpu_indices: tuple[int, ...] = ()
    seconds: float = 0.0
    # An idle instance of the same model at `to_host` that takes the requests: nothing is started there.
    to_instance_id: InstanceId | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One host looked at: an estimate, or the reason why it cannot take the start."""

    host_id: HostId
    estimate: StartEstimate | None
    reason: str | None = None
    # GPUs the start would take, lowest indices first.
    gpu_indices: tuple[int, ...] = ()
    # GPUs of the host that would stay free; kept while deciding only.
    spare_gpus: int = 0
    # Who would have to go first, in order; empty: the GPUs are free.
    victims: tuple[Victim, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    host_id: HostId
    gpu_indices: tuple[int, ...]
    estimate: StartEstimate
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Migrate:
    """Start on GPUs that others hold: every victim goes, in this order, then the start takes its GPUs.

    Evictions come first; one may be on another host, where it makes room for a move. The moves run side by
    side, and so does the way of the start's own bytes into this host's DRAM: `estimate.free_s` is only what
    the victims take longer than that (all they take where the checkpoint is larger than the pool).
    """

    host_id: HostId
    gpu_indices: tuple[int, ...]
    victims: tuple[Victim, ...]
    estimate: StartEstimate
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start: `instance_id` (same model) is on its way, or a GPU is expected to come free."""

    reason: str
    ready_in_s: float | None
    instance_id: InstanceId | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    retry_after_s: float
    candidates: tuple[Candidate, ...]


Decision = Place | Migrate | Wait | Reject


def decide(request: StartRequest, snapshot: FleetSnapshot) -> Decision:
    """Choose the plan with the least time until the model can answer.

    A start of the same model under way wins unless a new one would be sooner. With no host able, the
    answer is Wait if a GPU that would fit is expected back, else Reject.
    """
    givers = givers_of(request.model, snapshot)
    candidates = tuple(_look_at(request, host, snapshot, givers) for host in snapshot.hosts)
    feasible = [candidate for candidate in candidates if candidate.estimate is not None]
    best = min(feasible, key=_preference, default=None)
    if (wait := _join(request, snapshot, best, candidates)) is not None:
        return wait
    if best is None or best.estimate is None:
        return _no_host(request, snapshot, candidates)
    if request.deadline_s is not None and best.estimate.total_s > request.deadline_s:
        return Reject(
            reason=(
                f"the soonest start takes {best.estimate.total_s:.1f} s, "
                f"the deadline is {request.deadline_s:.1f} s"
            ),
            retry_after_s=best.estimate.total_s,
            candidates=candidates,
        )
    return Place(
        host_id=best.host_id,
        gpu_indices=best.gpu_indices,
        estimate=best.estimate,
        candidates=candidates,
    )


def _look_at(
    request: StartRequest, host: Host, snapshot: FleetSnapshot, givers: tuple[Host, ...]
) -> Candidate:
    model = request.model
    if (obstacle := _obstacle(request, host)) is not None:
        return Candidate(host.host_id, None, obstacle)
    free = sorted(gpu.index for gpu in host.free_gpus())
    if len(free) < model.gpu_count:
        return Candidate(host.host_id, None, f"{len(free)} of {model.gpu_count} GPUs free")
    return Candidate(
        host_id=host.host_id,
        estimate=estimate_start(model, host, snapshot, givers=givers),
        gpu_indices=tuple(free[: model.gpu_count]),
        spare_gpus=len(free) - model.gpu_count,
    )


def _obstacle(request: StartRequest, host: Host) -> str | None:
    """Why this host cannot take the start even with all its GPUs free; None if it could."""
    model = request.model
    if host.host_id in request.excluded_hosts:
        return "failed this start already"
    if host.state is not HostState.READY:
        return f"host is {host.state}"
    if 0 < host.dram_capacity_bytes < model.size_bytes and not _fits_gpus(model, host):
        return "checkpoint is larger than the DRAM pool and than its GPUs' memory"
    if 0 < host.ssd_capacity_bytes < model.size_bytes:
        return "checkpoint is larger than the SSD cache"
    return None


def _fits_gpus(model: Model, host: Host) -> bool:
    """What does not fit the pool goes through it, in chunks, to where it is computed with."""
    largest = sorted((gpu.memory_bytes for gpu in host.gpus), reverse=True)[: model.gpu_count]
    return sum(largest) >= model.size_bytes


def _preference(candidate: Candidate) -> tuple[float, int, str]:
    assert candidate.estimate is not None
    # A tenth of a millisecond is far below what the estimate can know: such hosts are equal.
    return (round(candidate.estimate.total_s, 4), candidate.spare_gpus, candidate.host_id)


def _join(
    request: StartRequest,
    snapshot: FleetSnapshot,
    best: Candidate | None,
    candidates: tuple[Candidate, ...],
) -> Wait | None:
    if not request.may_wait:
        return None
    own = [start for start in snapshot.starts if start.model == request.model.name]
    soonest = min(own, key=lambda start: (start.ready_in_s, start.instance_id), default=None)
    if soonest is None:
        return None
    if best is not None and best.estimate is not None and best.estimate.total_s < soonest.ready_in_s:
        return None
    return Wait(
        reason="a start of this model is under way",
        ready_in_s=soonest.ready_in_s,
        instance_id=soonest.instance_id,
        candidates=candidates,
    )


def _no_host(
    request: StartRequest, snapshot: FleetSnapshot, candidates: tuple[Candidate, ...]
) -> Wait | Reject:
    expected = [
        free_in_s
        for host in snapshot.hosts
        if _obstacle(request, host) is None
        if (free_in_s := _fits_in_s(host, request.model.gpu_count)) is not None
    ]
    within = min(expected, default=None)
    if within is not None and (request.deadline_s is None or within <= request.deadline_s):
        return Wait(
            reason="all GPUs are taken; one is expected back",
            ready_in_s=within,
            instance_id=None,
            candidates=candidates,
        )
    return Reject(
        reason=_why_not(candidates),
        retry_after_s=within if within is not None else 5.0,
        candidates=candidates,
    )


def _fits_in_s(host: Host, gpu_count: int) -> float | None:
    """Seconds until `gpu_count` GPUs of the host are free, if all that are missing are expected back."""
    free = [0.0 for gpu in host.gpus if gpu.instance_id is None]
    expected = [
        gpu.free_in_s for gpu in host.gpus if gpu.instance_id is not None and gpu.free_in_s is not None
    ]
    times = free + sorted(expected)
    return times[gpu_count - 1] if len(times) >= gpu_count else None


def _why_not(candidates: tuple[Candidate, ...]) -> str:
    if not candidates:
        return "no GPU host has joined the fleet"
    return "no host can take the start: " + "; ".join(
        f"{candidate.host_id}: {candidate.reason}" for candidate in candidates
    )

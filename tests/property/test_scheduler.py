"""Laws of the scheduler and the estimator, over fleets that hypothesis makes up."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.estimator import edge_of, estimate_start
from firstlight.domain.fleet import (
    Edge,
    EdgeModel,
    FleetSnapshot,
    Gpu,
    Host,
    Model,
    StartRequest,
    StartUnderWay,
    Tier,
)
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName
from firstlight.domain.scheduler import Place, Reject, Wait, decide

CHECKPOINT = CheckpointId("m@abcd")
GIB = 1 << 30


@st.composite
def hosts(draw: st.DrawFn, index: int) -> Host:
    gpus = []
    for gpu_index in range(draw(st.integers(1, 4))):
        owner = InstanceId(f"i-{index}-{gpu_index}") if draw(st.booleans()) else None
        free_in_s = draw(st.none() | st.floats(0, 600)) if owner else None
        gpus.append(Gpu(index=gpu_index, memory_bytes=80 * GIB, instance_id=owner, free_in_s=free_in_s))
    edges = {
        edge: EdgeModel(draw(st.floats(0, 2)), draw(st.floats(1e6, 1e11)))
        for edge in Edge
        if draw(st.booleans())
    }
    return Host(
        host_id=HostId(f"host-{index}"),
        host_class="test",
        state=draw(st.sampled_from(list(HostState))),
        gpus=tuple(gpus),
        edges=edges,
        tiers={CHECKPOINT: draw(st.sampled_from([Tier.REMOTE, Tier.SSD, Tier.DRAM]))},
        queued_bytes={edge: draw(st.integers(0, 100 * GIB)) for edge in Edge if draw(st.booleans())},
        dram_capacity_bytes=draw(st.sampled_from([0, 4 * GIB, 64 * GIB])),
        ssd_capacity_bytes=draw(st.sampled_from([0, 4 * GIB, 64 * GIB])),
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[StartRequest, FleetSnapshot]:
    fleet = tuple(draw(hosts(index)) for index in range(draw(st.integers(0, 5))))
    model = Model(
        name=ModelName("m"),
        checkpoint_id=CHECKPOINT,
        size_bytes=draw(st.integers(0, 16 * GIB)),
        source_bytes=draw(st.integers(0, 16 * GIB)),
        gpu_count=draw(st.integers(1, 3)),
    )
    starts = tuple(
        StartUnderWay(InstanceId(f"s-{n}"), ModelName(name), HostId("host-0"), draw(st.floats(0, 100)))
        for n, name in enumerate(draw(st.lists(st.sampled_from(["m", "other"]), max_size=2)))
    )
    request = StartRequest(
        model=model,
        deadline_s=draw(st.none() | st.floats(0.1, 1000)),
        excluded_hosts=frozenset(draw(st.lists(st.sampled_from([h.host_id for h in fleet]))))
        if fleet
        else frozenset(),
        may_wait=draw(st.booleans()),
    )
    return request, FleetSnapshot(taken_at_unix_s=0.0, hosts=fleet, starts=starts)


def brute_force(request: StartRequest, snapshot: FleetSnapshot) -> float | None:
    """The soonest start by looking at everything, written without the scheduler's code."""
    soonest: float | None = None
    for host in snapshot.hosts:
        free = [gpu for gpu in host.gpus if gpu.instance_id is None]
        memory_bytes = sum(sorted(gpu.memory_bytes for gpu in host.gpus)[-request.model.gpu_count :])
        pool_bytes = max(host.dram_capacity_bytes, memory_bytes)
        usable = (
            host.state == HostState.READY
            and host.host_id not in request.excluded_hosts
            and len(free) >= request.model.gpu_count
            and (host.dram_capacity_bytes == 0 or pool_bytes >= request.model.size_bytes)
            and (host.ssd_capacity_bytes == 0 or host.ssd_capacity_bytes >= request.model.size_bytes)
        )
        if usable:
            total = estimate_start(request.model, host, snapshot).total_s
            soonest = total if soonest is None else min(soonest, total)
    return soonest


@given(problems())
def test_a_placement_is_the_soonest_that_exists(problem: tuple[StartRequest, FleetSnapshot]) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    soonest = brute_force(request, snapshot)
    if isinstance(decision, Place):
        assert soonest is not None
        assert abs(decision.estimate.total_s - soonest) <= 1e-4
        assert request.deadline_s is None or decision.estimate.total_s <= request.deadline_s
    elif isinstance(decision, Reject) and soonest is not None:
        assert request.deadline_s is not None and soonest > request.deadline_s - 1e-4
    elif isinstance(decision, Wait) and soonest is not None:
        assert decision.ready_in_s is not None and decision.ready_in_s <= soonest + 1e-4


@given(problems())
def test_nobody_waits_for_a_host_that_could_never_take_the_start(
    problem: tuple[StartRequest, FleetSnapshot],
) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    if isinstance(decision, Wait) and decision.instance_id is None:
        every_gpu_free = tuple(
            replace(host, gpus=tuple(replace(gpu, instance_id=None, free_in_s=None) for gpu in host.gpus))
            for host in snapshot.hosts
        )
        assert brute_force(request, replace(snapshot, hosts=every_gpu_free)) is not None
        assert brute_force(request, snapshot) is None


@given(problems())
def test_only_free_gpus_of_a_ready_host_are_taken(problem: tuple[StartRequest, FleetSnapshot]) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    if isinstance(decision, Place):
        host = next(h for h in snapshot.hosts if h.host_id == decision.host_id)
        free = {gpu.index for gpu in host.gpus if gpu.instance_id is None}
        assert host.state is HostState.READY
        assert host.host_id not in request.excluded_hosts
        assert set(decision.gpu_indices) <= free
        assert len(decision.gpu_indices) == len(set(decision.gpu_indices)) == request.model.gpu_count


@given(problems())
def test_every_host_is_accounted_for(problem: tuple[StartRequest, FleetSnapshot]) -> None:
    request, snapshot = problem
    decision = decide(request, snapshot)
    assert [c.host_id for c in decision.candidates] == [h.host_id for h in snapshot.hosts]
    assert all((c.estimate is None) == (c.reason is not None) for c in decision.candidates)


@given(problems(), st.integers(1, 100 * GIB))
def test_an_estimate_grows_with_queued_bytes(
    problem: tuple[StartRequest, FleetSnapshot], more_bytes: int
) -> None:
    request, snapshot = problem
    for host in snapshot.hosts:
        # What is fetched lands in DRAM past the disk's queue.
        edge = Edge.REMOTE_TO_SSD if host.tiers[CHECKPOINT] is Tier.REMOTE else Edge.SSD_TO_DRAM
        busier = replace(
            host, queued_bytes={**host.queued_bytes, edge: host.queued_bytes.get(edge, 0) + more_bytes}
        )
        before = estimate_start(request.model, host, snapshot).total_s
        after = estimate_start(request.model, busier, snapshot).total_s
        if host.tiers[CHECKPOINT] is Tier.DRAM:
            assert after == before
        else:
            assert after > before


@given(problems())
def test_a_nearer_tier_is_never_slower(problem: tuple[StartRequest, FleetSnapshot]) -> None:
    """By a link that is no quicker than the disk: what it brings lands in DRAM and is not read back."""
    request, snapshot = problem
    for host in snapshot.hosts:
        edges = {**host.edges, Edge.REMOTE_TO_SSD: edge_of(host, Edge.SSD_TO_DRAM)}
        queues = {**host.queued_bytes, Edge.REMOTE_TO_SSD: host.queued_bytes.get(Edge.SSD_TO_DRAM, 0)}
        like = replace(host, edges=edges, queued_bytes=queues)
        totals = [
            estimate_start(request.model, replace(like, tiers={CHECKPOINT: tier}), snapshot).total_s
            for tier in (Tier.REMOTE, Tier.SSD, Tier.DRAM)
        ]
        # Equal ones may differ in their last digit.
        assert all(far >= near - 1e-9 for far, near in pairwise(totals))


@given(problems())
def test_a_decision_does_not_depend_on_the_order_of_hosts(
    problem: tuple[StartRequest, FleetSnapshot],
) -> None:
    request, snapshot = problem
    reverse = replace(snapshot, hosts=tuple(reversed(snapshot.hosts)))
    one, other = decide(request, snapshot), decide(request, reverse)
    assert type(one) is type(other)
    if isinstance(one, Place) and isinstance(other, Place):
        assert (one.host_id, one.gpu_indices) == (other.host_id, other.gpu_indices)

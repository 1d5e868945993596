"""Small fleets whose GPUs are held by running instances, for hypothesis to make up."""

from __future__ import annotations

from hypothesis import strategies as st

from firstlight.domain.estimator import move_key
from firstlight.domain.fleet import (
    Edge,
    EdgeModel,
    FleetSnapshot,
    Gpu,
    Host,
    Model,
    Running,
    StartRequest,
    StartUnderWay,
    Tier,
)
from firstlight.domain.lifecycle import HostState
from firstlight.domain.migration import MoveModel
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName

GIB = 1 << 30
CLASSES = ("big", "small")
SECONDS = st.floats(0, 5).map(lambda seconds: round(seconds, 3))


@st.composite
def models(draw: st.DrawFn, index: int) -> Model:
    return Model(
        name=ModelName(f"m{index}"),
        checkpoint_id=CheckpointId(f"m{index}@1"),
        size_bytes=draw(st.integers(1, 16)) * GIB,
        source_bytes=draw(st.integers(0, 16)) * GIB,
        gpu_count=draw(st.sampled_from([2, 1, 3] if index == 0 else [1, 1, 1, 2])),
        attach_s={name: draw(SECONDS) for name in CLASSES} if draw(st.booleans()) else {},
        priority=draw(st.sampled_from([1, 0] if index == 0 else [0, 0, 0, 1])),
        min_instances=draw(st.sampled_from([0, 0, 0, 1])),
    )


@st.composite
def tenanted_hosts(draw: st.DrawFn, index: int, known: list[Model]) -> tuple[Host, list[Running]]:
    """A host, and who runs there: from GPU 0 on until no model that is drawn fits."""
    host_id = HostId(f"host-{index}")
    gpu_count = draw(st.integers(1, 4))
    owners: list[InstanceId | None] = []
    tenants: list[Running] = []
    while len(owners) < gpu_count:
        model = draw(st.sampled_from([*known[1:], *known[1:], *known[1:], known[0], None]))
        if model is None or len(owners) + model.gpu_count > gpu_count:
            owners.append(None)
            continue
        instance_id = InstanceId(f"i-{index}-{len(owners)}")
        indices = tuple(range(len(owners), len(owners) + model.gpu_count))
        owners += [instance_id] * model.gpu_count
        if draw(st.sampled_from([True] * 7 + [False])):
            tenants.append(draw(tenancies(instance_id, model, host_id, indices)))
    host = Host(
        host_id=host_id,
        host_class=draw(st.sampled_from(CLASSES)),
        state=draw(st.sampled_from([HostState.READY] * 12 + list(HostState))),
        gpus=tuple(
            Gpu(
                n,
                80 * GIB,
                owner,
                *draw(st.sampled_from([(None, False), (draw(SECONDS), draw(st.booleans()))])),
            )
            if owner is not None
            else Gpu(n, 80 * GIB)
            for n, owner in enumerate(owners)
        ),
        edges={
            edge: EdgeModel(draw(SECONDS), draw(st.sampled_from([1e9, 5e9, 1e8])))
            for edge in draw(st.sampled_from([(), tuple(Edge), (Edge.SSD_TO_DRAM,)]))
        },
        tiers={
            model.checkpoint_id: draw(st.sampled_from([Tier.SSD, Tier.DRAM, Tier.REMOTE])) for model in known
        },
        queued_bytes={edge: draw(st.integers(0, 8)) * GIB for edge in (Edge.SSD_TO_DRAM, Edge.PEER_TO_DRAM)},
        dram_capacity_bytes=draw(st.sampled_from([0, 0, 0, 4 * GIB])),
        peer_endpoint=draw(st.sampled_from(["", "peer:1"])),
        uplink_queued_bytes=draw(st.integers(0, 4)) * GIB,
    )
    return host, tenants


@st.composite
def tenancies(
    draw: st.DrawFn, instance_id: InstanceId, model: Model, host_id: HostId, indices: tuple[int, ...]
) -> Running:
    is_idle = draw(st.booleans())
    return Running(
        instance_id=instance_id,
        model=model,
        host_id=host_id,
        gpu_indices=indices,
        requests=0 if is_idle else draw(st.integers(1, 4)),
        tokens=0 if is_idle else draw(st.integers(0, 5000)),
        idle_s=draw(st.floats(0, 600)) if is_idle else None,
        is_movable=draw(st.sampled_from([True, True, True, False])),
        expected_idle_for_s=draw(st.none() | st.floats(0, 3600)),
    )


@st.composite
def tenanted_problems(draw: st.DrawFn) -> tuple[StartRequest, FleetSnapshot]:
    """A request for a model, perhaps one that runs already, on a fleet of at most four hosts."""
    known = [draw(models(index)) for index in range(draw(st.integers(3, 5)))]
    drawn = [draw(tenanted_hosts(index, known)) for index in range(draw(st.sampled_from([3, 4, 2, 1])))]
    hosts = tuple(host for host, _ in drawn)
    starts = tuple(
        StartUnderWay(InstanceId(f"s-{n}"), model.name, HostId("host-0"), draw(SECONDS))
        for n, model in enumerate(draw(st.sampled_from([[], [], [], known[:1], known[:2]])))
    )
    host_ids = [host.host_id for host in hosts]
    request = StartRequest(
        model=known[0],
        deadline_s=draw(st.sampled_from([None, None, 1.0, 5.0, 30.0])),
        excluded_hosts=frozenset(draw(st.lists(st.sampled_from(host_ids), max_size=1))),
        may_wait=draw(st.booleans()),
        may_free=draw(st.sampled_from([True] * 7 + [False])),
        waited_s=draw(st.sampled_from([None, None, 0.0, 2.0])),
    )
    snapshot = FleetSnapshot(
        taken_at_unix_s=0.0,
        hosts=hosts,
        starts=starts,
        running=tuple(one for _, tenants in drawn for one in tenants),
        moves={
            move_key(model.name, name): MoveModel(draw(st.sampled_from([1e-4, 1e-2, 0.0])), draw(SECONDS))
            for model in known[1:3]
            for name in CLASSES
        },
        evict_s=draw(SECONDS),
    )
    return request, snapshot

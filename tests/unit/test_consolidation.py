"""Which host is emptied onto which, and that a fleet comes to rest."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.consolidation import Consolidation, consolidate
from firstlight.domain.fleet import FleetSnapshot, Gpu, Host, Model, Running, StartUnderWay, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName

# (GPUs of the instance, its requests) by host.
Fleet = list[list[tuple[int, int]]]
GPUS = 4


def model(number: int, *, gpu_count: int = 1, min_instances: int = 0) -> Model:
    name = f"model-{number}"
    return Model(ModelName(name), CheckpointId(f"{name}@1"), 1, 1, gpu_count, min_instances=min_instances)


def snapshot_of(fleet: Fleet) -> FleetSnapshot:
    """Every checkpoint on every host's disk."""
    hosts, running, number = [], [], 0
    for index, instances in enumerate(fleet):
        host_id, gpus = HostId(f"host-{index}"), []
        for gpu_count, requests in instances:
            first = len(gpus)
            one = InstanceId(f"i-{number}")
            gpus += [Gpu(first + n, 1, one) for n in range(gpu_count)]
            running.append(
                Running(
                    one,
                    model(number, gpu_count=gpu_count),
                    host_id,
                    tuple(range(first, first + gpu_count)),
                    requests=requests,
                    tokens=100 * requests,
                )
            )
            number += 1
        gpus += [Gpu(n, 1) for n in range(len(gpus), GPUS)]
        hosts.append(Host(host_id, "cpu", HostState.READY, tuple(gpus), {}))
    tiers = {one.model.checkpoint_id: Tier.SSD for one in running}
    return FleetSnapshot(0.0, tuple(replace(host, tiers=tiers) for host in hosts), running=tuple(running))


def after(snapshot: FleetSnapshot, plan: Consolidation) -> FleetSnapshot:
    """The fleet once every move is done. Fails if anything goes where no room is."""
    hosts = {host.host_id: list(host.gpus) for host in snapshot.hosts}
    running = {one.instance_id: one for one in snapshot.running}
    for move in plan.moves:
        one = running[move.instance_id]
        gpus = hosts[move.to_host]
        free = [gpu.index for gpu in gpus if gpu.instance_id is None][: len(one.gpu_indices)]
        assert len(free) == len(one.gpu_indices), "it has room where it goes"
        hosts[one.host_id] = [
            replace(gpu, instance_id=None) if gpu.instance_id == one.instance_id else gpu
            for gpu in hosts[one.host_id]
        ]
        hosts[move.to_host] = [
            replace(gpu, instance_id=one.instance_id) if gpu.index in free else gpu for gpu in gpus
        ]
        running[one.instance_id] = replace(one, host_id=move.to_host, gpu_indices=tuple(free))
    return replace(
        snapshot,
        hosts=tuple(replace(host, gpus=tuple(hosts[host.host_id])) for host in snapshot.hosts),
        running=tuple(running.values()),
    )


def taken(snapshot: FleetSnapshot) -> int:
    return sum(len(host.free_gpus()) < len(host.gpus) for host in snapshot.hosts)


FLEETS = st.lists(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3)), max_size=2), min_size=1, max_size=5
)


@given(FLEETS)
def test_every_pass_frees_one_whole_host_until_none_can_be(fleet: Fleet) -> None:
    snapshot = snapshot_of(fleet)
    for _ in range(len(fleet) + 1):
        plan = consolidate(snapshot, most_requests=10)
        if plan is None:
            return
        before = taken(snapshot)
        snapshot = after(snapshot, plan)
        assert taken(snapshot) == before - 1
    raise AssertionError("it never comes to rest")


def test_a_nearly_idle_host_goes_to_the_fuller_one() -> None:
    plan = consolidate(snapshot_of([[(1, 1)], [(1, 3), (1, 3)]]), most_requests=1)
    assert plan is not None
    assert (plan.host_id, [(m.instance_id, m.to_host) for m in plan.moves]) == (
        "host-0",
        [("i-0", "host-1")],
    )


def test_a_busy_host_stays() -> None:
    assert consolidate(snapshot_of([[(1, 2)], [(1, 3), (1, 3)]]), most_requests=1) is None


def test_a_lonely_host_stays() -> None:
    """An empty host receives nothing: that would only change which one is empty."""
    assert consolidate(snapshot_of([[(1, 0)], []]), most_requests=1) is None


def test_bytes_that_are_far_do_not_move() -> None:
    snapshot = snapshot_of([[(1, 1)], [(1, 3), (1, 3)]])
    bare = replace(snapshot, hosts=tuple(replace(host, tiers={}) for host in snapshot.hosts))
    assert consolidate(bare, most_requests=1) is None


def test_what_is_not_known_keeps_its_host() -> None:
    snapshot = snapshot_of([[(1, 1)], [(1, 3), (1, 3)]])
    unknown = replace(snapshot, running=snapshot.running[1:])
    assert consolidate(unknown, most_requests=1) is None
    pinned = replace(
        snapshot, running=(replace(snapshot.running[0], is_movable=False), *snapshot.running[1:])
    )
    assert consolidate(pinned, most_requests=1) is None
    coming = StartUnderWay(InstanceId("i-9"), ModelName("x"), HostId("host-0"), 1.0)
    assert consolidate(replace(snapshot, starts=(coming,)), most_requests=1) is None


def test_an_idle_instance_ends_by_itself_unless_it_is_needed() -> None:
    snapshot = snapshot_of([[(1, 0)], [(1, 3), (1, 3)]])
    idle = replace(snapshot.running[0], idle_s=60.0)
    assert consolidate(replace(snapshot, running=(idle, *snapshot.running[1:])), most_requests=1) is None
    needed = replace(idle, model=replace(idle.model, min_instances=1))
    plan = consolidate(replace(snapshot, running=(needed, *snapshot.running[1:])), most_requests=1)
    assert plan is not None and len(plan.moves) == 1

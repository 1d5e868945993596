"""Laws of the edge from another host's store, and of the choice among many hosts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.estimator import GIVERS_AT_MOST, estimate_start, givers_of
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Gpu, Host, Model, StartRequest, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName
from firstlight.domain.scheduler import Place, decide

CHECKPOINT = CheckpointId("m@abcd")
GIB = 1 << 30


@st.composite
def hosts(draw: st.DrawFn, index: int) -> Host:
    tier = draw(st.sampled_from([None, Tier.SSD, Tier.DRAM]))
    gpus = [
        Gpu(index=number, memory_bytes=GIB, instance_id=draw(st.none() | st.just(InstanceId("i"))))
        for number in range(draw(st.integers(1, 3)))
    ]
    return Host(
        host_id=HostId(f"host-{index}"),
        host_class="test",
        state=draw(st.sampled_from(list(HostState))),
        gpus=tuple(gpus),
        edges={
            edge: EdgeModel(draw(st.floats(0, 2)), draw(st.floats(1e6, 1e11)))
            for edge in Edge
            if draw(st.booleans())
        },
        tiers={} if tier is None else {CHECKPOINT: tier},
        queued_bytes={edge: draw(st.integers(0, 100 * GIB)) for edge in Edge if draw(st.booleans())},
        peer_endpoint=draw(st.sampled_from(["", f"10.0.0.{index}:9"])),
        uplink_queued_bytes=draw(st.integers(0, 100 * GIB)),
    )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Model, FleetSnapshot]:
    model = Model(
        name=ModelName("m"),
        checkpoint_id=CHECKPOINT,
        size_bytes=draw(st.integers(1, 16 * GIB)),
        source_bytes=draw(st.integers(0, 16 * GIB)),
    )
    fleet = tuple(draw(hosts(index)) for index in range(draw(st.integers(1, 6))))
    return model, FleetSnapshot(taken_at_unix_s=0.0, hosts=fleet)


def alone(snapshot: FleetSnapshot) -> FleetSnapshot:
    """The same fleet, where no store gives anything to another."""
    return replace(snapshot, hosts=tuple(replace(host, peer_endpoint="") for host in snapshot.hosts))


@given(fleets())
def test_peers_never_make_the_chosen_plan_slower_by_estimate(problem: tuple[Model, FleetSnapshot]) -> None:
    model, snapshot = problem
    request = StartRequest(model, may_wait=False)
    with_peers, without = decide(request, snapshot), decide(request, alone(snapshot))
    assert isinstance(with_peers, Place) == isinstance(without, Place)
    if isinstance(with_peers, Place) and isinstance(without, Place):
        # The choice among hosts is made to a tenth of a millisecond.
        assert with_peers.estimate.total_s <= without.estimate.total_s + 2e-4


@given(fleets())
def test_a_peer_is_chosen_only_where_it_is_sooner_and_able_to_give(
    problem: tuple[Model, FleetSnapshot],
) -> None:
    model, snapshot = problem
    by_id = {host.host_id: host for host in snapshot.hosts}
    for candidate in decide(StartRequest(model, may_wait=False), snapshot).candidates:
        if candidate.estimate is None:
            continue
        found, host = candidate.estimate, by_id[candidate.host_id]
        assert (found.tier is Tier.PEER) == (found.peer_host_id is not None)
        assert found.total_s <= estimate_start(model, host, alone(snapshot)).total_s
        if found.peer_host_id is not None:
            giver = by_id[found.peer_host_id]
            assert not host.tiers and giver.tiers and giver.peer_endpoint
            assert giver.state is not HostState.LOST and giver.host_id != host.host_id


@given(fleets(), st.integers(0, 100 * GIB))
def test_a_longer_queue_at_an_uplink_never_makes_a_start_sooner(
    problem: tuple[Model, FleetSnapshot], more_bytes: int
) -> None:
    model, snapshot = problem
    busier = replace(
        snapshot,
        hosts=tuple(
            replace(host, uplink_queued_bytes=host.uplink_queued_bytes + more_bytes)
            for host in snapshot.hosts
        ),
    )
    for host in snapshot.hosts:
        givers = givers_of(model, snapshot)
        now = estimate_start(model, host, snapshot, givers=givers).total_s
        later = estimate_start(model, host, busier, givers=givers_of(model, busier)).total_s
        # Who is asked is ranked by another's link, so that an order may turn; never below the estimate.
        assert len(givers) > GIVERS_AT_MOST or later >= now - 1e-9


class CountedTiers(dict[CheckpointId, Tier]):
    """A host's tiers, which say how often somebody asked them for the sake of a cost."""

    looks = 0

    def get(self, key: object, default: object = None) -> Tier | None:  # type: ignore[override]
        CountedTiers.looks += 1
        return super().get(key)  # type: ignore[call-overload,no-any-return]


@given(st.integers(1, 60), st.data())
def test_each_host_is_looked_at_once_and_the_best_by_time_fit_and_id_wins(
    count: int, data: st.DataObject
) -> None:
    free = [data.draw(st.integers(0, 3)) for _ in range(count)]
    # Few distinct times, so that ties are common.
    overheads = [data.draw(st.sampled_from([0.1, 0.2])) for _ in range(count)]
    fleet = tuple(
        Host(
            host_id=HostId(f"host-{index:03}"),
            host_class="test",
            state=HostState.READY,
            gpus=tuple(Gpu(index=number, memory_bytes=GIB) for number in range(free[index])),
            edges={Edge.SSD_TO_DRAM: EdgeModel(overheads[index], 1e9)},
            tiers=CountedTiers({CHECKPOINT: Tier.SSD}),
        )
        for index in range(count)
    )
    model = Model(ModelName("m"), CHECKPOINT, size_bytes=GIB, source_bytes=GIB)
    CountedTiers.looks = 0
    decision = decide(StartRequest(model), FleetSnapshot(taken_at_unix_s=0.0, hosts=fleet))
    # Once for who has the checkpoint, once for what a start costs; and the chosen one is written down.
    assert CountedTiers.looks <= 2 * count + 1
    able = [(overheads[index], free[index], f"host-{index:03}") for index in range(count) if free[index]]
    if able:
        assert isinstance(decision, Place) and decision.host_id == min(able)[2]

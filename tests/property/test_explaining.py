"""An explanation adds up to the estimate that it explains."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.domain.estimator import PRIOR_ATTACH_S, attach_key, estimate_start, givers_of
from firstlight.domain.explaining import explain_ways
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Gpu, Host, Model, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, ModelName

CHECKPOINT = CheckpointId("m@abcd")
GIB = 1 << 30


@st.composite
def hosts(draw: st.DrawFn, index: int) -> Host:
    tier = draw(st.sampled_from([None, Tier.SSD, Tier.DRAM]))
    return Host(
        host_id=HostId(f"host-{index}"),
        host_class=draw(st.sampled_from(["small", "large"])),
        state=HostState.READY,
        gpus=(Gpu(index=0, memory_bytes=GIB),),
        edges={
            edge: EdgeModel(draw(st.floats(0, 2)), draw(st.floats(1e6, 1e11)), draw(st.integers(0, 9)))
            for edge in Edge
            if draw(st.booleans())
        },
        tiers={} if tier is None else {CHECKPOINT: tier},
        queued_bytes={edge: draw(st.integers(0, 100 * GIB)) for edge in Edge if draw(st.booleans())},
        dram_capacity_bytes=draw(st.sampled_from([0, GIB, 100 * GIB])),
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
        gpu_count=draw(st.integers(1, 3)),
        attach_s={attach_key("small", tier): draw(st.floats(0, 1)) for tier in (Tier.DRAM, Tier.SSD)},
    )
    fleet = tuple(draw(hosts(index)) for index in range(draw(st.integers(1, 4))))
    return model, FleetSnapshot(0.0, fleet, control_s=0.02, control_beside_bytes_s=0.07)


@given(fleets())
def test_the_first_way_is_the_estimate(problem: tuple[Model, FleetSnapshot]) -> None:
    model, snapshot = problem
    for host in snapshot.hosts:
        estimate = estimate_start(model, host, snapshot, givers=givers_of(model, snapshot))
        ways = explain_ways(model, host, snapshot)
        assert ways[0].total_s == estimate.total_s
        assert estimate.tier in {way.tier for way in ways if way.total_s == estimate.total_s}
        assert [way.total_s for way in ways] == sorted(way.total_s for way in ways)


@given(fleets())
def test_edges_add_up(problem: tuple[Model, FleetSnapshot]) -> None:
    model, snapshot = problem
    for host in snapshot.hosts:
        for way in explain_ways(model, host, snapshot):
            crossed = [edge for edge in way.edges if not edge.is_beside]
            beside_s = sum(edge.transfer_s for edge in way.edges if edge.is_beside)
            bytes_s = sum(edge.transfer_s for edge in crossed)
            total_s = sum(edge.queue_s for edge in crossed) + bytes_s + way.attach_s + way.control_s
            assert way.total_s == pytest.approx(total_s)
            assert way.is_attach_learned == (host.host_class == "small")
            if not way.is_attach_learned:
                assert way.attach_s == pytest.approx(PRIOR_ATTACH_S + max(0.0, beside_s - bytes_s))


@given(fleets())
def test_pipelined_tiers_count_only_the_slowest(problem: tuple[Model, FleetSnapshot]) -> None:
    """A copy to the GPU that is quicker than the bytes' way there adds nothing."""
    model, snapshot = problem
    model = replace(model, attach_s={})
    for host in snapshot.hosts:
        if host.tiers.get(CHECKPOINT) is Tier.DRAM:
            continue
        with_bus = replace(host, edges={**host.edges, Edge.DRAM_TO_GPU: EdgeModel(0.0, 1e15)})
        without = replace(host, edges={e: m for e, m in host.edges.items() if e is not Edge.DRAM_TO_GPU})
        assert estimate_start(model, with_bus, snapshot).total_s == pytest.approx(
            estimate_start(model, without, snapshot).total_s, rel=1e-6, abs=1e-4
        )

"""Plans that free GPUs, one story each."""

from __future__ import annotations

from dataclasses import replace

from firstlight.domain.estimator import attach_key
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
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName
from firstlight.domain.scheduler import Migrate, Place, Reject, VictimAction, Wait, decide

GIB = 1 << 30
NOW_S = 0.0


def model(name: str, *, gpus: int = 1, priority: int = 0, minimum: int = 0) -> Model:
    """Ten gigabytes: 10 s from SSD, 0.1 s from DRAM, 100 s from afar."""
    return Model(
        name=ModelName(name),
        checkpoint_id=CheckpointId(f"{name}@1"),
        size_bytes=10_000_000_000,
        source_bytes=10_000_000_000,
        gpu_count=gpus,
        attach_s={attach_key("h", tier): 0.05 for tier in Tier},
        priority=priority,
        min_instances=minimum,
    )


def host(
    name: str, *owners: str | None, free_in_s: float | None = None, is_given_up: bool = False, **tiers: Tier
) -> Host:
    return Host(
        host_id=HostId(name),
        host_class="h",
        state=HostState.READY,
        gpus=tuple(
            Gpu(index, 80 * GIB, InstanceId(owner), free_in_s, is_given_up) if owner else Gpu(index, 80 * GIB)
            for index, owner in enumerate(owners)
        ),
        edges={Edge.SSD_TO_DRAM: EdgeModel(0.0, 1e9), Edge.REMOTE_TO_SSD: EdgeModel(0.0, 1e8)},
        tiers={CheckpointId(f"{key}@1"): tier for key, tier in tiers.items()},
    )


def busy(name: str, where: str, of: Model, *gpus: int, tokens: int = 1000) -> Running:
    return Running(InstanceId(name), of, HostId(where), gpus or (0,), requests=1, tokens=tokens)


def idle(name: str, where: str, of: Model, *gpus: int, idle_s: float = 100.0) -> Running:
    return Running(InstanceId(name), of, HostId(where), gpus or (0,), idle_s=idle_s)


def fleet(*hosts: Host, running: tuple[Running, ...] = (), **more: object) -> FleetSnapshot:
    return FleetSnapshot(taken_at_unix_s=NOW_S, hosts=hosts, running=running, **more)  # type: ignore[arg-type]


A, B, C = model("a"), model("b"), model("c")


def test_who_runs_where_another_starts_soonest_moves_to_where_it_is_as_well_off() -> None:
    """The paper's case: A is in the DRAM of a host that B holds, and B in the DRAM of a host that is free."""
    snapshot = fleet(
        host("left", "i-b", a=Tier.DRAM, b=Tier.DRAM),
        host("right", None, a=Tier.SSD, b=Tier.DRAM),
        running=(busy("i-b", "left", B),),
    )
    plan = decide(StartRequest(A), snapshot)
    assert isinstance(plan, Migrate)
    (victim,) = plan.victims
    assert (plan.host_id, plan.gpu_indices) == ("left", (0,))
    assert (victim.action, victim.to_host, victim.to_gpu_indices) == (VictimAction.MOVE, "right", (0,))
    # Until B has moved: its start there (0.1 s), then its requests (0.05 s + 1000 tokens at 0.1 ms).
    assert abs(plan.estimate.free_s - 0.25) < 1e-9
    assert abs(plan.estimate.total_s - 0.35) < 1e-9
    assert isinstance(decide(StartRequest(A, may_free=False), snapshot), Place)


def test_the_bytes_come_while_victims_leave() -> None:
    snapshot = fleet(
        host("left", "i-b", a=Tier.SSD, b=Tier.DRAM),
        host("right", None, b=Tier.DRAM),
        running=(busy("i-b", "left", B),),
    )
    plan = decide(StartRequest(A), snapshot)
    assert isinstance(plan, Migrate) and plan.host_id == "left"
    assert plan.estimate.free_s == 0.0
    assert abs(plan.estimate.total_s - 10.1) < 1e-9


def test_nobody_is_moved_for_a_gain_that_nobody_would_notice() -> None:
    near = fleet(
        host("left", "i-b", a=Tier.DRAM, b=Tier.DRAM),
        replace(
            host("right", None, a=Tier.SSD, b=Tier.DRAM),
            edges={Edge.SSD_TO_DRAM: EdgeModel(0.0, 1e10 / 0.19)},
        ),
        running=(busy("i-b", "left", B, tokens=0),),
    )
    assert isinstance(decide(StartRequest(A), near), Place)


def test_of_idle_instances_the_one_least_likely_to_be_needed_ends() -> None:
    lately, long_ago = idle("i-b", "only", B, 0, idle_s=5.0), idle("i-c", "only", C, 1, idle_s=500.0)
    snapshot = fleet(
        host("only", "i-b", "i-c", a=Tier.DRAM, b=Tier.DRAM, c=Tier.DRAM), running=(lately, long_ago)
    )
    plan = decide(StartRequest(A), snapshot)
    assert isinstance(plan, Migrate) and [one.instance_id for one in plan.victims] == ["i-c"]
    # Its own history knows better than the time it has been idle.
    known = replace(snapshot, running=(lately, replace(long_ago, expected_idle_for_s=1.0)))
    plan = decide(StartRequest(A), known)
    assert isinstance(plan, Migrate) and [one.instance_id for one in plan.victims] == ["i-b"]


def test_the_last_of_a_models_minimum_and_higher_priorities_stay() -> None:
    where = host("only", "i-b", a=Tier.DRAM)
    for other in (model("b", minimum=1), model("b", priority=1)):
        snapshot = fleet(where, running=(idle("i-b", "only", other),))
        assert isinstance(decide(StartRequest(A), snapshot), Reject)
    equal = replace(A, priority=1)
    snapshot = fleet(where, running=(idle("i-b", "only", model("b", priority=1)),))
    assert isinstance(decide(StartRequest(equal), snapshot), Migrate)


def test_several_victims_each_go_to_a_place_of_their_own() -> None:
    wide = model("a", gpus=2)
    snapshot = fleet(
        host("left", "i-b", "i-c", a=Tier.DRAM),
        host("middle", None, b=Tier.DRAM, c=Tier.SSD),
        host("right", None, b=Tier.SSD, c=Tier.DRAM),
        running=(busy("i-b", "left", B, 0), busy("i-c", "left", C, 1)),
    )
    plan = decide(StartRequest(wide), snapshot)
    assert isinstance(plan, Migrate) and plan.gpu_indices == (0, 1)
    assert {one.instance_id: one.to_host for one in plan.victims} == {"i-b": "middle", "i-c": "right"}


def test_an_idle_instance_elsewhere_makes_room_for_one_that_moves() -> None:
    snapshot = fleet(
        host("left", "i-b", a=Tier.DRAM),
        host("right", "i-c", b=Tier.DRAM, c=Tier.DRAM),
        running=(busy("i-b", "left", B), idle("i-c", "right", C)),
    )
    plan = decide(StartRequest(A), snapshot)
    assert isinstance(plan, Migrate) and plan.host_id == "left"
    ends, moves = plan.victims
    assert (ends.instance_id, ends.action) == ("i-c", VictimAction.EVICT)
    assert (moves.instance_id, moves.to_host, moves.to_gpu_indices) == ("i-b", "right", (0,))


def test_requests_move_to_an_idle_instance_of_their_model_if_there_is_one() -> None:
    snapshot = fleet(
        host("left", "i-b", a=Tier.DRAM),
        host("right", "i-b2", b=Tier.DRAM),
        running=(busy("i-b", "left", B), idle("i-b2", "right", B)),
    )
    plan = decide(StartRequest(A), snapshot)
    assert isinstance(plan, Migrate)
    assert [one.to_instance_id for one in plan.victims] == ["i-b2"]


def test_gpus_about_to_be_free_are_waited_for_until_the_wait_has_cost_as_much() -> None:
    near = host("near", "i-x", free_in_s=1.0, is_given_up=True, a=Tier.DRAM)
    snapshot = fleet(near, host("far", None, a=Tier.SSD))
    assert isinstance(decide(StartRequest(A), snapshot), Place), "nobody asked to be put off"
    first = decide(StartRequest(A, waited_s=0.0), snapshot)
    assert isinstance(first, Wait) and first.ready_in_s == 1.0 and first.instance_id is None
    assert isinstance(decide(StartRequest(A, waited_s=8.9), snapshot), Wait)
    assert isinstance(decide(StartRequest(A, waited_s=9.1), snapshot), Place)


def test_nobody_who_could_begin_now_waits_for_an_instance_that_is_busy() -> None:
    busy_near = host("near", "i-x", free_in_s=1.0, a=Tier.DRAM)
    snapshot = fleet(busy_near, host("far", None, a=Tier.SSD))
    assert isinstance(decide(StartRequest(A, waited_s=0.0), snapshot), Place)
    assert isinstance(decide(StartRequest(A, waited_s=0.0), fleet(busy_near)), Wait), "there is nothing else"


def test_what_no_plan_can_make_is_rejected_at_once_even_if_it_is_under_way() -> None:
    start = StartUnderWay(InstanceId("i-a"), A.name, HostId("far"), 50.0)
    snapshot = fleet(host("far", "i-a"), starts=(start,))
    late = decide(StartRequest(A, deadline_s=20.0), snapshot)
    assert isinstance(late, Reject) and late.retry_after_s == 50.0
    in_time = decide(StartRequest(A, deadline_s=60.0), snapshot)
    assert isinstance(in_time, Wait) and in_time.instance_id == "i-a"


def test_a_dearer_plan_that_makes_the_deadline_beats_a_cheaper_one_that_does_not() -> None:
    """Ending B is cheap in what others lose but its GPU comes late; C's comes at once."""
    snapshot = fleet(
        host("only", "i-b", "i-c", a=Tier.DRAM, b=Tier.DRAM, c=Tier.DRAM),
        host("other", None, b=Tier.DRAM, a=Tier.REMOTE),
        running=(busy("i-b", "only", B, 0, tokens=5000), idle("i-c", "only", C, 1, idle_s=0.0)),
        evict_s=0.9,
    )
    relaxed = decide(StartRequest(A), snapshot)
    assert isinstance(relaxed, Migrate) and relaxed.victims[0].instance_id == "i-b"
    assert isinstance(decide(StartRequest(A, deadline_s=0.7), snapshot), Reject)
    quick = replace(
        snapshot, evict_s=0.55, running=(replace(snapshot.running[0], requests=8), snapshot.running[1])
    )
    pressed = decide(StartRequest(A, deadline_s=0.7), quick)
    assert isinstance(pressed, Migrate) and pressed.victims[0].instance_id == "i-c"

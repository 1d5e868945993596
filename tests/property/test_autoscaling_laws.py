"""Laws of scaling by concurrency, of prefetching and of eviction by likelihood."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.domain.autoscaling.choice import scaling_policy
from firstlight.domain.autoscaling.eviction import Resident, eviction_order, loss_per_byte, make_room
from firstlight.domain.autoscaling.prefetch import Likely, Prefetch, PrefetchBudget, plan_prefetch
from firstlight.domain.autoscaling.scaling import ConcurrencyScaling, Demand, Scaling, ScalingMemory
from firstlight.domain.errors import InvalidSettings
from firstlight.domain.fleet import FleetSnapshot, Gpu, Host, Model, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName
from gpu_worker.store.eviction import EvictionOrder

GIB = 1 << 30


def demand(**figures: float) -> Demand:
    usual = {"now_s": 0.0, "running": 0, "waiting": 0, "ready": 0, "starting": 0, "max_concurrency": 4}
    return Demand(**{**usual, "max_instances": 8, **figures})  # type: ignore[arg-type]


demands = st.builds(
    demand,
    now_s=st.floats(0, 1000),
    running=st.integers(0, 40),
    waiting=st.integers(0, 200),
    ready=st.integers(0, 6),
    starting=st.integers(0, 3),
    max_concurrency=st.integers(1, 16),
    min_instances=st.integers(0, 2),
    max_instances=st.integers(2, 8),
)
memories = st.builds(ScalingMemory, st.none() | st.floats(0, 1000), st.none() | st.floats(0, 1000))


@settings(deadline=None)
@given(demands, memories)
def test_the_models_bounds_hold_whatever_is_asked(figures: Demand, memory: ScalingMemory) -> None:
    scaling = ConcurrencyScaling().decide(figures, memory)
    assert figures.min_instances <= scaling.instances <= figures.max_instances or (
        scaling.instances == figures.instances
    )
    assert scaling.instances >= figures.min_instances
    # One at a time: what is let go costs a start to bring back.
    within = figures.min_instances <= figures.instances <= figures.max_instances
    assert not within or scaling.change(figures) >= -1


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 16), st.floats(0.5, 3), st.floats(0.1, 0.5))
def test_a_steady_load_is_settled_on_and_stays_so(
    requests: int, places: int, target: float, target_in: float
) -> None:
    policy = ConcurrencyScaling(target=target, target_in=target_in, out_after_s=2.0, in_after_s=10.0)
    counts, memory, ready = [], ScalingMemory(), 1
    for second in range(300):
        running = min(requests, ready * places)
        figures = demand(
            now_s=float(second),
            running=running,
            waiting=requests - running,
            ready=ready,
            max_concurrency=places,
            max_instances=20,
        )
        scaling = policy.decide(figures, memory)
        memory, ready = scaling.memory, scaling.instances
        counts.append(ready)
    assert len(set(counts[200:])) == 1, "no swinging to and fro"
    assert ready == 20 or requests <= ready * places * target


def test_out_at_once_from_nothing_later_and_back_only_after_a_while() -> None:
    policy = ConcurrencyScaling(target=1.0, target_in=0.5, out_after_s=2.0, in_after_s=30.0)
    first = policy.decide(demand(waiting=50), ScalingMemory())
    assert first.instances == 1

    def at(second: float, memory: ScalingMemory, **figures: float) -> Scaling:
        return policy.decide(demand(now_s=second, ready=2, **figures), memory)

    short = at(10.0, ScalingMemory(), running=8, waiting=3)
    assert (short.instances, short.again_in_s) == (2, 2.0)
    assert at(11.0, short.memory, running=8).memory == ScalingMemory(), "a burst that passed is forgotten"
    assert at(12.0, short.memory, running=8, waiting=3).instances == 3

    spare = at(20.0, ScalingMemory(), running=1)
    assert (spare.instances, spare.again_in_s) == (2, 30.0)
    assert at(50.0, spare.memory, running=1).instances == 1
    assert at(49.0, spare.memory, running=1).instances == 2
    assert at(50.0, spare.memory, running=3).instances == 2, "three would crowd one instance again"


def test_settings_that_would_swing_are_refused() -> None:
    with pytest.raises(InvalidSettings):
        scaling_policy("concurrency", out_at=0.5, out_after_s=0, in_at=0.6, in_after_s=0)
    with pytest.raises(InvalidSettings):
        scaling_policy("crystal-ball", out_at=1, out_after_s=0, in_at=0.6, in_after_s=0)
    with pytest.raises(InvalidSettings):
        PrefetchBudget(bytes_per_pass=1, need_at_least=1.5)


def model(number: int, size_bytes: int = GIB) -> Model:
    name = f"m{number}"
    return Model(
        name=ModelName(name),
        checkpoint_id=CheckpointId(f"{name}@abcd"),
        size_bytes=size_bytes,
        source_bytes=size_bytes,
    )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Likely], FleetSnapshot]:
    models = [model(number, draw(st.integers(1, 8)) * GIB) for number in range(draw(st.integers(1, 4)))]
    hosts = []
    for number in range(draw(st.integers(1, 4))):
        tiers = {
            one.checkpoint_id: draw(st.sampled_from([Tier.SSD, Tier.DRAM]))
            for one in models
            if draw(st.booleans())
        }
        busy = draw(st.booleans())
        hosts.append(
            Host(
                host_id=HostId(f"host-{number}"),
                host_class="test",
                state=draw(st.sampled_from([HostState.READY, HostState.READY, HostState.DRAINING])),
                gpus=(Gpu(0, 80 * GIB, InstanceId(f"i-{number}") if busy else None),),
                edges={},
                tiers=tiers,
                dram_capacity_bytes=draw(st.integers(0, 32)) * GIB,
                ssd_capacity_bytes=draw(st.integers(0, 64)) * GIB,
            )
        )
    likely = [Likely(one, draw(st.floats(0, 1))) for one in models]
    return likely, FleetSnapshot(taken_at_unix_s=0.0, hosts=tuple(hosts))


def prefetched(likely: list[Likely], snapshot: FleetSnapshot, budget: PrefetchBudget) -> tuple[Prefetch, ...]:
    sizes = {one.model.checkpoint_id: one.model.size_bytes for one in likely}
    return plan_prefetch(likely, snapshot, budget, sizes=sizes)


@settings(deadline=None)
@given(fleets(), st.integers(0, 40), st.floats(0, 1), st.integers(1, 3))
def test_a_pass_keeps_to_its_budget_and_to_the_room_there_is(
    fleet: tuple[list[Likely], FleetSnapshot], gib: int, share: float, copies: int
) -> None:
    likely, snapshot = fleet
    budget = PrefetchBudget(
        bytes_per_pass=gib * GIB, dram_share=share, ssd_share=share, copies_at_most=copies
    )
    chosen = prefetched(likely, snapshot, budget)
    needs = {one.model.name: one.need for one in likely}
    sizes = {one.model.checkpoint_id: one.model.size_bytes for one in likely}
    hosts = {host.host_id: host for host in snapshot.hosts}
    assert sum(one.size_bytes for one in chosen) <= budget.bytes_per_pass
    assert len({(one.model.name, one.tier) for one in chosen}) == len(chosen)
    for one in chosen:
        host = hosts[one.host_id]
        assert host.state is HostState.READY and one.saves_s > 0
        assert needs[one.model.name] >= budget.need_at_least
        present = host.tiers.get(one.model.checkpoint_id)
        assert present is None or (one.tier is Tier.DRAM and present is Tier.SSD)
        if one.tier is Tier.SSD:
            assert sum(one.model.checkpoint_id in host.tiers for host in snapshot.hosts) < copies
    for host in snapshot.hosts:
        for tier, capacity in (
            (Tier.DRAM, host.dram_capacity_bytes),
            (Tier.SSD, host.ssd_capacity_bytes),
        ):
            added = sum(p.size_bytes for p in chosen if p.host_id == host.host_id and p.tier is tier)
            held = sum(sizes[key] for key, at in host.tiers.items() if tier is Tier.SSD or at is Tier.DRAM)
            assert not added or held + added <= share * capacity


def test_the_likelier_of_two_alike_is_brought_nearer() -> None:
    host = Host(
        host_id=HostId("host-a"),
        host_class="test",
        state=HostState.READY,
        gpus=(Gpu(0, 80 * GIB),),
        edges={},
        tiers={model(n).checkpoint_id: Tier.SSD for n in range(3)},
        dram_capacity_bytes=64 * GIB,
        ssd_capacity_bytes=64 * GIB,
    )
    likely = [Likely(model(0), 0.4), Likely(model(1), 0.9), Likely(model(2), 0.1)]
    snapshot = FleetSnapshot(taken_at_unix_s=0.0, hosts=(host,))
    chosen = prefetched(likely, snapshot, PrefetchBudget(bytes_per_pass=GIB))
    assert [(one.model.name, one.tier, one.host_id) for one in chosen] == [("m1", Tier.DRAM, "host-a")]
    plenty = prefetched(likely, snapshot, PrefetchBudget(bytes_per_pass=9 * GIB))
    assert [one.model.name for one in plenty] == ["m1", "m0"], "what is unlikely stays where it is"


def test_a_second_copy_goes_where_the_hosts_that_have_one_are_busy() -> None:
    held = Host(
        host_id=HostId("host-a"),
        host_class="test",
        state=HostState.READY,
        gpus=(Gpu(0, 80 * GIB, InstanceId("i-a")),),
        edges={},
        tiers={model(0).checkpoint_id: Tier.SSD},
        ssd_capacity_bytes=64 * GIB,
    )
    idle = replace(held, host_id=HostId("host-b"), gpus=(Gpu(0, 80 * GIB),), tiers={})
    budget = PrefetchBudget(bytes_per_pass=9 * GIB)
    snapshot = FleetSnapshot(taken_at_unix_s=0.0, hosts=(held, idle))
    [copy] = prefetched([Likely(model(0), 0.9)], snapshot, budget)
    assert (copy.host_id, copy.tier) == ("host-b", Tier.SSD)
    free = replace(snapshot, hosts=(replace(held, gpus=(Gpu(0, 80 * GIB),)), idle))
    assert prefetched([Likely(model(0), 0.9)], free, budget) == (), "the host that has it can start it"
    assert prefetched([Likely(model(0), 0.9)], snapshot, replace(budget, copies_at_most=1)) == ()


residents = st.lists(
    st.builds(
        Resident,
        key=st.text("abcdefgh", min_size=3, max_size=6),
        size_bytes=st.integers(1, 100),
        bring_back_s=st.floats(0, 100),
        need=st.none() | st.floats(0, 1),
        last_used_s=st.floats(0, 1000),
    ),
    max_size=8,
    unique_by=lambda one: one.key,
)


@settings(deadline=None)
@given(residents, st.integers(0, 500))
def test_room_is_made_without_a_victim_too_many(held: list[Resident], wanted: int) -> None:
    victims = make_room(held, bytes_wanted=wanted)
    if victims is None:
        assert sum(one.size_bytes for one in held) < wanted
        return
    freed = sum(one.size_bytes for one in victims)
    assert freed >= wanted
    for fewer in combinations(victims, len(victims) - 1) if victims else ():
        assert sum(one.size_bytes for one in fewer) < wanted


@settings(deadline=None)
@given(residents)
def test_the_least_loss_by_the_byte_goes_first(held: list[Resident]) -> None:
    losses = [
        loss_per_byte(bring_back_s=one.bring_back_s, size_bytes=one.size_bytes, need=one.need)
        for one in eviction_order(held)
    ]
    assert losses == sorted(losses)


def test_a_store_lets_the_unlikely_go_first_and_goes_by_use_when_nobody_says() -> None:
    order = EvictionOrder()
    for key in ("first", "second", "third"):
        order.touch(key, cost_s=1.0, size_bytes=GIB)
    names = {"first", "second", "third"}
    assert order.first_to_go(names) == ["first", "second", "third"]
    order.expect({"first": 0.9, "third": 0.1})
    assert order.first_to_go(names) == ["third", "second", "first"]
    order.expect({})
    assert order.first_to_go(names) == ["first", "second", "third"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.floats(0.1, 10), st.integers(1, 10)), min_size=1, max_size=40
    )
)
def test_without_a_word_a_store_evicts_as_greedy_dual_does(
    uses: list[tuple[str, float, int]],
) -> None:
    """Against the plain algorithm, written without the store's code: evict one after every third use."""
    order, credits, used, floor = EvictionOrder(), {}, {}, 0.0
    for turn, (key, cost_s, size) in enumerate(uses):
        order.touch(key, cost_s=cost_s, size_bytes=size)
        credits[key], used[key] = floor + cost_s / size, turn
        if turn % 3 == 2:
            expected = min(credits, key=lambda name: (round(credits[name], 9), used[name]))
            first = order.first_to_go(set(credits))[0]
            assert credits[first] == pytest.approx(credits[expected])
            order.evicted(first)
            floor = max(floor, credits.pop(first))

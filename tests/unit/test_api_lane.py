"""A lane's laws: places are never exceeded or lost, first come is first served, waiting ends."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from api.routing.lane import Lane, Route, Slot
from api.routing.notices import InstanceNotice
from api.routing.route_table import RouteTable
from api.scale_in import ScaleIn
from firstlight.domain.autoscaling.scaling import ConcurrencyScaling
from firstlight.domain.errors import NoCapacity, QueueFull, StartTimeout
from firstlight.domain.lifecycle import InstanceState


def lane_of(max_queue: int = 100) -> Lane:
    return Lane("m", max_queue, lambda lane: None)


def route(name: str, *, epoch: int = 1, places: int = 2) -> Route:
    return Route(name, "m", "host-a", f"127.0.0.1:{epoch}", epoch, places)


async def take(lane: Lane, *, within_s: float = 5.0, **changes: object) -> Slot:
    return await lane.take(deadline_s=time.monotonic() + within_s, request_id="r", **changes)  # type: ignore[arg-type]


async def waiting(lane: Lane, count: int) -> list[asyncio.Task[Slot]]:
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(take(lane)))
        # A new task runs at the next turn of the loop, and then stands in line.
        await asyncio.sleep(0)
    assert lane.waiting == count
    return tasks


async def test_the_least_loaded_instance_is_taken() -> None:
    lane = lane_of()
    lane.open(route("small", places=1))
    lane.open(route("large", places=4))
    taken = [(await take(lane)).route.instance_id for _ in range(5)]
    assert sorted(taken) == ["large"] * 4 + ["small"]


async def test_requests_are_gathered_on_those_that_serve_longest() -> None:
    lane = lane_of()
    for epoch, name in ((3, "new"), (1, "old"), (2, "middle")):
        lane.open(route(name, epoch=epoch))
    lane.gathered_on = 1
    slots = [await take(lane) for _ in range(5)]
    taken = [slot.route.instance_id for slot in slots]
    assert taken[:2] == ["old", "old"], "the others fall idle"
    assert sorted(taken[2:4]) == ["middle", "new"], "and take what the first cannot"
    for slot in slots:
        lane.give_back(slot)
    lane.close("old")
    assert (await take(lane)).route.instance_id == "middle"


async def test_instances_that_are_too_many_fall_idle_after_a_while_and_not_before() -> None:
    table = RouteTable(max_queue=10)
    policy = ConcurrencyScaling(target=2.0, target_in=0.6, in_after_s=60.0)
    scale_in = ScaleIn(table=table, scaling=policy)
    lane = table.lane("m")
    for epoch in (1, 2, 3):
        lane.open(route(f"i{epoch}", epoch=epoch, places=4))
    slots = [await take(lane) for _ in range(4)]
    assert len({slot.route.instance_id for slot in slots}) == 3
    seen = []
    for second in range(0, 200, 10):
        scale_in.look(now_s=float(second))
        seen.append(lane.gathered_on)
    # Four requests are more than 0.6 of one instance's four places, so two instances stay.
    assert seen[:6] == [3] * 6 and seen[-1] == 2 and sorted(seen, key=lambda n: -(n or 0)) == seen
    for slot in slots:
        lane.give_back(slot)
    lane.close("i2")
    lane.close("i3")
    scale_in.look(now_s=201.0)
    assert lane.gathered_on is None


def test_instances_that_the_minimum_keeps_are_all_used() -> None:
    table = RouteTable(max_queue=10)
    policy = ConcurrencyScaling(target=2.0, target_in=0.6, in_after_s=1.0)
    scale_in = ScaleIn(table=table, scaling=policy, min_instances_of={"m": 2}.__getitem__)
    lane = table.lane("m")
    for epoch in (1, 2, 3):
        lane.open(route(f"i{epoch}", epoch=epoch, places=4))
    for second in range(20):
        scale_in.look(now_s=float(second))
    assert lane.gathered_on == 2
    lane.close("i3")
    scale_in.look(now_s=21.0)
    assert lane.gathered_on == 2


async def test_who_waits_longest_is_served_first() -> None:
    lane = lane_of()
    lane.open(route("one", places=1))
    slot = await take(lane)
    tasks = await waiting(lane, 3)
    for task in tasks:
        lane.give_back(slot)
        slot = await task
        assert slot.waited_s > 0
    assert lane.running == 1


async def test_a_full_queue_and_a_passed_deadline_are_errors() -> None:
    lane = lane_of(max_queue=1)
    tasks = await waiting(lane, 1)
    with pytest.raises(QueueFull):
        await take(lane)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(StartTimeout):
        await take(lane, within_s=0.01)
    assert lane.waiting == 0


async def test_a_place_given_to_one_who_leaves_in_that_moment_is_not_lost() -> None:
    lane = lane_of()
    lane.open(route("one", places=1))
    slot = await take(lane)
    leaver, stayer = await waiting(lane, 2)
    # The place is handed over and the wait is cancelled before the waiter could run.
    lane.give_back(slot)
    leaver.cancel()
    assert (await stayer).route.instance_id == "one"
    assert lane.running == 1


async def test_failing_the_waiting_ends_every_wait_of_now() -> None:
    lane = lane_of()
    tasks = await waiting(lane, 3)
    lane.fail_waiting(NoCapacity("nothing free"))
    assert all(isinstance(end, NoCapacity) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert lane.waiting == 0


async def test_a_suspected_instance_gets_nothing_until_it_is_trusted() -> None:
    lane = lane_of()
    lane.open(route("one"))
    assert lane.suspect(route("one"))
    (task,) = await waiting(lane, 1)
    lane.trust(route("one", epoch=9))
    assert not task.done() and lane.waiting == 1
    lane.trust(route("one"))
    assert (await task).route.instance_id == "one"


async def test_the_first_token_after_a_start_is_proven_once() -> None:
    lane = lane_of()
    lane.open(route("known before"))
    assert not lane.prove(route("known before"))
    lane.starting["fresh"] = 2
    lane.open(route("fresh"))
    assert lane.prove(route("fresh")) and not lane.prove(route("fresh"))


@pytest.mark.parametrize("seed", range(20))
async def test_places_are_never_exceeded_and_never_lost(seed: int) -> None:
    """Requests come, leave early, finish; instances come, are doubted and go. In the end all is free."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    lane = lane_of()
    held: dict[int, int] = {}

    async def request() -> None:
        try:
            slot = await take(lane, within_s=chance.choice([0.001, 5.0]))
        except StartTimeout:
            return
        key = slot.route.epoch
        held[key] = held.get(key, 0) + 1
        assert held[key] <= slot.route.max_concurrency
        try:
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            held[key] -= 1
            lane.give_back(slot)

    tasks = []
    for step in range(200):
        tasks.append(asyncio.create_task(request()))
        if chance.random() < 0.1:
            chance.choice(tasks).cancel()
        if chance.random() < 0.1:
            name = chance.choice("ab")
            lane.close(name)
            lane.open(route(name, epoch=step + 1, places=chance.randint(1, 4)))
        if chance.random() < 0.2:
            await asyncio.sleep(0)
    lane.open(route("last", epoch=999, places=3))
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(held.values())
    assert (lane.running, lane.waiting) == (0, 0)


def notice(state: InstanceState, *, epoch: int = 1, name: str = "i") -> InstanceNotice:
    endpoint = "127.0.0.1:1" if state is InstanceState.READY else None
    return InstanceNotice(name, "m", "host-a", state, endpoint, epoch, 2)


def test_a_notice_of_an_older_epoch_changes_nothing() -> None:
    table = RouteTable(max_queue=10)
    table.apply(notice(InstanceState.READY, epoch=5))
    table.apply(notice(InstanceState.FAILED, epoch=4))
    assert len(table.lane("m").routes) == 1
    table.apply(notice(InstanceState.FAILED, epoch=5))
    assert table.lane("m").routes == ()


def test_a_refresh_forgets_what_the_database_does_not_hold() -> None:
    heard: list[tuple[str, InstanceState]] = []
    table = RouteTable(
        max_queue=10, on_change=lambda notice, before: heard.append((notice.instance_id, notice.state))
    )
    table.apply(notice(InstanceState.READY, name="gone"))
    table.apply(notice(InstanceState.STARTING, name="kept"))
    heard.clear()
    table.refresh([notice(InstanceState.READY, name="kept"), notice(InstanceState.READY, name="new")])
    assert ("gone", InstanceState.STOPPED) in heard
    assert {row.instance_id for row in table.lane("m").routes} == {"kept", "new"}
    assert table.live_instances("m") == 2


def test_an_engine_bound_ahead_serves_until_the_database_says_otherwise() -> None:
    table = RouteTable(max_queue=10)
    lane = table.lane("m")
    table.open_ahead(route("i", epoch=7))
    assert lane.routes == (), "of a start that nobody has heard of"
    table.apply(notice(InstanceState.STARTING, epoch=7))
    table.open_ahead(route("i", epoch=6))
    assert lane.routes == (), "of a plan that was replaced"
    table.open_ahead(route("i", epoch=7))
    assert lane.routes == (route("i", epoch=7),) and not lane.starting
    table.apply(notice(InstanceState.STARTING, epoch=7))
    table.refresh([notice(InstanceState.STARTING, epoch=7)])
    assert len(lane.routes) == 1, "a repeat is no news"
    table.apply(notice(InstanceState.READY, epoch=7))
    assert len(lane.routes) == 1
    table.apply(notice(InstanceState.STARTING, epoch=7))
    assert lane.routes == () and lane.starting, "its route was taken back"
    table.open_ahead(route("i", epoch=7))
    table.apply(notice(InstanceState.FAILED, epoch=7))
    assert lane.routes == () and not lane.starting
    table.open_ahead(route("i", epoch=7))
    assert lane.routes == (), "it has ended"


def test_a_new_plan_closes_what_the_old_one_had_bound() -> None:
    table = RouteTable(max_queue=10)
    table.apply(notice(InstanceState.STARTING, epoch=7))
    table.open_ahead(route("i", epoch=7))
    table.apply(notice(InstanceState.STARTING, epoch=8))
    assert table.lane("m").routes == () and set(table.lane("m").starting) == {"i"}

"""When a lane asks for a start, and what becomes of it; the cluster is a contract fake."""

from __future__ import annotations

import asyncio
import time

import pytest

from api.routing.need import SUSPICION_S, LaneFigures, Need, need_of
from api.routing.notices import InstanceNotice
from api.routing.route_table import RouteTable
from api.starts import StartDirector, Starter
from firstlight.contracts.starts import CheckpointRef, PlannedEstimate, StartPlan
from firstlight.database.records import PlannedStart
from firstlight.domain.autoscaling.scaling import ConcurrencyScaling, ScalingMemory
from firstlight.domain.errors import (
    DatabaseUnavailable,
    ModelBeingDeleted,
    NoCapacity,
    Overloaded,
    StartFailed,
    UnknownModel,
)
from firstlight.domain.estimator import StartEstimate
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import InstanceState
from firstlight.domain.names import HostId
from firstlight.domain.scheduler import Migrate, Place, Reject, Wait

HOST = HostId("host-a")
Answer = Place | Migrate | Wait | Reject
ESTIMATE = StartEstimate(0.0, 0.0, 0.1, 0.1, 0.05, Tier.SSD)


def figures(waiting: int, **others: float) -> LaneFigures:
    return LaneFigures(waiting=waiting, **{"now_s": 0.0, "max_concurrency": 8, **others})  # type: ignore[arg-type]


POLICY = ConcurrencyScaling(target=2.0, out_after_s=1.0)
FULL = {"ready": 1, "running": 8, "live_instances": 1, "max_instances": 2}


@pytest.mark.parametrize(
    ("figures", "need"),
    [
        (figures(0), Need.NOTHING),
        (figures(1), Need.FIRST),
        # Another one drains: it serves nobody new.
        (figures(1, live_instances=1), Need.FIRST),
        # The shortage has only begun.
        (figures(9, **FULL), Need.NOTHING),
        (figures(9, **FULL, now_s=1.0), Need.ANOTHER),
        (figures(8, **FULL, now_s=1.0), Need.NOTHING),
        (figures(9, **{**FULL, "max_instances": 1}, now_s=1.0), Need.NOTHING),
        # One that starts will take its share; one that drains holds a place of the maximum.
        (figures(20, **{**FULL, "starting": 1, "max_instances": 3}, now_s=1.0), Need.NOTHING),
        (figures(25, **{**FULL, "starting": 1, "max_instances": 3}, now_s=1.0), Need.ANOTHER),
        (figures(25, **{**FULL, "live_instances": 2}, now_s=1.0), Need.NOTHING),
        (figures(1, live_instances=1, suspected_for_s=SUSPICION_S / 2), Need.NOTHING),
        (figures(1, live_instances=1, suspected_for_s=SUSPICION_S + 1), Need.FIRST),
    ],
)
def test_what_a_lane_needs(figures: LaneFigures, need: Need) -> None:
    assert need_of(figures, POLICY, ScalingMemory(short_since_s=0.0)).need is need


def test_a_shortage_is_looked_at_again_when_it_has_lasted() -> None:
    first = need_of(figures(9, **FULL), POLICY, ScalingMemory())
    assert (first.need, first.again_in_s) == (Need.NOTHING, 1.0)
    assert need_of(figures(9, **FULL, now_s=1.0), POLICY, first.memory).need is Need.ANOTHER
    over = need_of(figures(1, **FULL, now_s=0.5), POLICY, first.memory)
    assert (over.need, over.memory) == (Need.NOTHING, ScalingMemory())


def planned(decision: Answer, number: int = 0) -> PlannedStart:
    plan = None
    if isinstance(decision, Place | Migrate):
        plan = StartPlan(
            decision_id=f"d-{number}",
            instance_id=f"i-{number}",
            epoch=number + 1,
            host_id=HOST,
            gpu_indices=[0],
            model="m",
            checkpoint=CheckpointRef("m@abcd", "hf://m", "float32", 1),
            estimate=PlannedEstimate(0.0, 0.0, 0.1, 0.1, 0.05, "ssd"),
            max_concurrency=4,
            keep_alive_s=1.0,
            decided_at_unix_s=0.0,
        )
    return PlannedStart(decision_id=f"d-{number}", decision=decision, plan=plan, candidates_markdown="")


PLACE = Place(HOST, (0,), ESTIMATE, ())


class ScriptedStarter(Starter):
    """Answers with the given decisions or errors, one after the other; the last one for ever."""

    def __init__(self, *answers: Answer | Exception, begin_errors: int = 0) -> None:
        self.answers = list(answers)
        self.begin_errors = begin_errors
        self.plans: list[bool] = []
        self.waited_s: list[float | None] = []
        self.begun: list[str] = []
        self.given_up: list[str] = []

    async def plan(
        self,
        model: str,
        *,
        deadline_s: float | None,
        may_wait: bool,
        request_id: str,
        waited_s: float | None = None,
    ) -> PlannedStart:
        number = len(self.plans)
        self.waited_s.append(waited_s)
        self.plans.append(may_wait)
        await asyncio.sleep(0)
        answer = self.answers[min(number, len(self.answers) - 1)]
        if isinstance(answer, Exception):
            raise answer
        return planned(answer, number)

    async def begin(self, planned: PlannedStart) -> None:
        assert planned.plan is not None
        if self.begin_errors > 0:
            self.begin_errors -= 1
            raise Overloaded("Temporal is away")
        self.begun.append(planned.plan.instance_id)

    async def give_up(self, planned: PlannedStart, failure: str) -> None:
        assert planned.plan is not None
        self.given_up.append(planned.plan.instance_id)


def direct(
    starter: Starter, *, max_instances: int = 1, scaling: ConcurrencyScaling | None = None
) -> RouteTable:
    table = RouteTable(max_queue=1000)
    director = StartDirector(
        starter=starter, table=table, max_instances_of=lambda model: max_instances, scaling=scaling
    )
    table.on_demand = director.demand
    table.on_change = director.changed
    return table


def notice(name: str, state: InstanceState, *, epoch: int = 1, model: str = "m") -> InstanceNotice:
    endpoint = "127.0.0.1:1" if state is InstanceState.READY else None
    failure = "the disk is on fire" if state is InstanceState.FAILED else None
    return InstanceNotice(name, model, HOST, state, endpoint, epoch, 4, "read_failed", failure)


async def asked(table: RouteTable, count: int = 1, *, within_s: float = 5.0) -> list[asyncio.Task[object]]:
    async def take() -> object:
        lane = table.lane("m")
        slot = await lane.take(deadline_s=time.monotonic() + within_s, request_id="r")
        lane.give_back(slot)
        return slot

    tasks = [asyncio.create_task(take()) for _ in range(count)]
    # New tasks run at the next turn of the loop, and then stand in line.
    await asyncio.sleep(0)
    assert table.lane("m").waiting == count
    return tasks


async def until(condition: object) -> None:
    deadline_s = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.001)


async def test_many_requests_cause_one_start_and_all_are_served() -> None:
    starter = ScriptedStarter(PLACE)
    table = direct(starter)
    tasks = await asked(table, 100)
    await until(lambda: starter.begun)
    # Our own commit's notice, then readiness.
    table.apply(notice("i-0", InstanceState.STARTING))
    table.apply(notice("i-0", InstanceState.READY))
    await asyncio.gather(*tasks)
    assert (len(starter.plans), starter.begun) == (1, ["i-0"])


async def test_a_crowd_that_lasts_gets_several_instances_side_by_side() -> None:
    starter = ScriptedStarter(PLACE)
    table = direct(starter, max_instances=5, scaling=ConcurrencyScaling(target=2.0, out_after_s=0.05))
    tasks = await asked(table, 20)
    await until(lambda: len(starter.begun) == 3)
    # Eight requests for each instance are as many as its four places may have; none is ready yet.
    assert starter.plans == [True, False, False]
    for number in range(3):
        table.apply(notice(f"i-{number}", InstanceState.READY, epoch=number + 1))
    await asyncio.gather(*tasks)
    assert len(starter.begun) == 3


async def test_the_reason_of_a_failed_start_reaches_who_waits() -> None:
    starter = ScriptedStarter(PLACE)
    table = direct(starter)
    tasks = await asked(table, 3)
    await until(lambda: starter.begun)
    table.apply(notice("i-0", InstanceState.FAILED))
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, StartFailed) and "on fire" in end.message for end in ends)


async def test_rejected_means_no_capacity() -> None:
    starter = ScriptedStarter(Reject("no host has joined", 7.0, ()))
    (task,) = await asked(direct(starter))
    with pytest.raises(NoCapacity, match="no host has joined") as caught:
        await task
    assert caught.value.fields["retry_after_s"] == 7.0


async def test_a_wait_ends_with_any_models_instance_and_not_before() -> None:
    starter = ScriptedStarter(Wait("all taken", 60.0, None, ()), PLACE)
    table = direct(starter)
    table.apply(notice("x", InstanceState.READY, model="other"))
    (task,) = await asked(table)
    await until(lambda: len(starter.plans) == 1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(starter.plans) == 1
    table.apply(notice("x", InstanceState.STOPPED, model="other"))
    await until(lambda: starter.begun)
    table.apply(notice("i-1", InstanceState.READY, epoch=2))
    await task


async def test_the_scheduler_is_told_for_how_long_a_start_was_put_off() -> None:
    starter = ScriptedStarter(
        *3 * [Wait("GPUs are expected back", 0.0, None, ())], PLACE, Reject("full", 7, ())
    )
    table = direct(starter)
    (task,) = await asked(table)
    await until(lambda: starter.begun)
    told_s = [waited_s for waited_s in starter.waited_s if waited_s is not None]
    assert told_s[0] == 0.0 < told_s[1] < told_s[2] < told_s[3]
    table.apply(notice("i-3", InstanceState.READY, epoch=4))
    await task
    # The next start is another one.
    table.apply(notice("i-3", InstanceState.STOPPED, epoch=4))
    (task,) = await asked(table)
    with pytest.raises(NoCapacity):
        await task
    assert starter.waited_s[4] == 0.0


async def test_who_holds_the_gpus_may_have_nothing_to_do_at_any_moment() -> None:
    """Its keep-alive time is ten minutes; that it has become idle nobody tells."""
    starter = ScriptedStarter(Wait("all taken", 600.0, None, ()), Migrate(HOST, (0,), (), ESTIMATE, ()))
    table = direct(starter)
    (task,) = await asked(table)
    async with asyncio.timeout(10):
        await until(lambda: starter.begun)
        table.apply(notice("i-1", InstanceState.READY, epoch=2))
        await task
    assert starter.begun == ["i-1"]


async def test_a_database_that_is_away_is_asked_again() -> None:
    starter = ScriptedStarter(DatabaseUnavailable("gone"), PLACE)
    table = direct(starter)
    (task,) = await asked(table)
    await until(lambda: starter.begun)
    table.apply(notice("i-1", InstanceState.READY, epoch=2))
    await task


async def test_a_model_that_is_deleted_meanwhile_is_unknown() -> None:
    (task,) = await asked(direct(ScriptedStarter(ModelBeingDeleted("going"))))
    with pytest.raises(UnknownModel):
        await task


async def test_temporal_is_asked_again_and_given_up_at_the_deadline() -> None:
    starter = ScriptedStarter(PLACE, begin_errors=1)
    table = direct(starter)
    (task,) = await asked(table)
    await until(lambda: starter.begun == ["i-0"])
    table.apply(notice("i-0", InstanceState.READY))
    await task
    hopeless = ScriptedStarter(PLACE, begin_errors=10**6)
    (task,) = await asked(direct(hopeless), within_s=0.5)
    with pytest.raises(Overloaded):
        await task
    await until(lambda: hopeless.given_up == ["i-0"])


async def test_a_bug_in_planning_is_an_error_and_not_a_hang() -> None:
    (task,) = await asked(direct(ScriptedStarter(RuntimeError("a bug"))))
    with pytest.raises(Exception, match="could not be planned"):
        await task

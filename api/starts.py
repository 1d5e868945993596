"""Starting what is asked for: one careful loop per model that has requests waiting.

The loop sleeps on events (a notice of an instance, a new request) and never polls; a time-out wakes it only
when a decision said when to look again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from api.routing.lane import Lane
from api.routing.need import LaneFigures, Need, need_of
from api.routing.notices import InstanceNotice
from api.routing.route_table import LIVE, RouteTable
from firstlight.database.records import PlannedStart
from firstlight.domain.autoscaling.scaling import ConcurrencyScaling, ScalingMemory, ScalingPolicy
from firstlight.domain.errors import (
    FirstlightError,
    ModelBeingDeleted,
    NoCapacity,
    Overloaded,
    StartAbandoned,
    StartFailed,
    StartTimeout,
    UnknownModel,
)
from firstlight.domain.lifecycle import InstanceState
from firstlight.domain.scheduler import Migrate, Place, Reject, Wait

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 2.0
# Looking again costs one short transaction and writes one decision: not more often than this.
SOONEST_LOOK_S = 0.25
LATEST_LOOK_S = 30.0
# How long to try to begin a start that nobody waits for.
LATER_WITHIN_S = 30.0
# Postgres and Temporal are back within seconds of a crash. Who has been away for longer (a full disk, a
# broken network) is not worth the rest of a request's deadline: its client hears why, and when to come again.
STORES_AWAY_S = 45.0


class Starter(ABC):
    """What the loop needs of the cluster."""

    @abstractmethod
    async def plan(
        self,
        model: str,
        *,
        deadline_s: float | None,
        may_wait: bool,
        request_id: str,
        waited_s: float | None = None,
    ) -> PlannedStart:
        """Decide, and reserve if the decision is Place or Migrate; the chosen host is told at once, best
        effort, so that bytes move before anything is written. Who says for how long it `waited_s` may be put
        off for GPUs that are about to be free. Raises: Overloaded when it cannot be asked now.
        """

    @abstractmethod
    async def begin(self, planned: PlannedStart) -> None:
        """Start the workflow; a repeat joins it. Raises: Overloaded when it cannot be started now."""

    @abstractmethod
    async def give_up(self, planned: PlannedStart, failure: str) -> None:
        """Undo a plan whose workflow could not be started; best effort."""


class StartDirector:
    """Keeps every lane with waiting requests moving. `max_instances_of` is None for an unknown model."""

    def __init__(
        self,
        *,
        starter: Starter,
        table: RouteTable,
        max_instances_of: Callable[[str], int | None],
        on_planned: Callable[[str, PlannedStart], None] = lambda model, planned: None,
        scaling: ScalingPolicy | None = None,
    ) -> None:
        self._scaling = scaling or ConcurrencyScaling()
        # What the policy remembers of each model whose requests wait.
        self._memories: dict[str, ScalingMemory] = {}
        self._starter = starter
        self._table = table
        self._max_instances_of = max_instances_of
        self._on_planned = on_planned
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._backoff_s: dict[str, float] = {}
        # Since when no plan could be made for a model (monotonic), while that is so.
        self._away_since_s: dict[str, float] = {}
        # Since when a model's start is put off for GPUs that are expected back (monotonic).
        self._put_off_since_s: dict[str, float] = {}

    def demand(self, lane: Lane) -> None:
        """A request begins to wait in `lane`."""
        self._wakes.setdefault(lane.model, asyncio.Event()).set()
        if lane.model not in self._tasks:
            task = asyncio.create_task(self._tend(lane), name=f"starts of {lane.model}")
            self._tasks[lane.model] = task
            task.add_done_callback(lambda ended: self._ended(lane, ended))

    def changed(self, notice: InstanceNotice, before: InstanceState | None) -> None:
        """An instance changed its state: wake who waits for that."""
        lane = self._table.lane(notice.model)
        if notice.state is InstanceState.FAILED and before is InstanceState.STARTING:
            self._start_failed(lane, notice)
        if notice.state not in LIVE:
            # A GPU may be free now, for any model.
            for wake in self._wakes.values():
                wake.set()
        elif notice.model in self._wakes:
            self._wakes[notice.model].set()

    def wake_all(self) -> None:
        """Something else changed (a host joined, a connection came back): every lane looks again."""
        for wake in self._wakes.values():
            wake.set()

    async def plan(self, model: str, *, request_id: str) -> PlannedStart:
        """One decision on an operator's word, carried out as for a request, however long it will take."""
        planned = await self._starter.plan(model, deadline_s=None, may_wait=True, request_id=request_id)
        self._on_planned(model, planned)
        if planned.plan is not None:
            deadline_s = time.monotonic() + LATER_WITHIN_S
            await self._carry_out(self._table.lane(model), planned, deadline_s=deadline_s)
        return planned

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        self._tasks.pop(lane.model, None)
        self._memories.pop(lane.model, None)
        self._away_since_s.pop(lane.model, None)
        self._put_off_since_s.pop(lane.model, None)
        if task.cancelled():
            return
        if (failure := task.exception()) is not None:
            logger.error("the start loop of %s ended by a bug", lane.model, exc_info=failure)
            lane.fail_waiting(FirstlightError("the start could not be planned"))
        elif lane.waiting:
            # A request came in between the loop's last look and its end.
            self.demand(lane)

    async def _tend(self, lane: Lane) -> None:
        wake = self._wakes[lane.model]
        while lane.waiting:
            wake.clear()
            look_again_s = await self._look(lane)
            if not lane.waiting:
                return
            try:
                async with asyncio.timeout(look_again_s):
                    await wake.wait()
            except TimeoutError:
                continue

    async def _look(self, lane: Lane) -> float | None:
        """Act on what the lane needs. Returns when to look again without an event, in seconds."""
        found = need_of(self._figures(lane), self._scaling, self._memories.get(lane.model, ScalingMemory()))
        self._memories[lane.model] = found.memory
        if found.need is Need.NOTHING:
            return found.again_in_s
        try:
            return await self._start(lane, found.need)
        except ModelBeingDeleted:
            lane.fail_waiting(UnknownModel(f"model {lane.model!r} was deleted", model=lane.model))
        except Overloaded as error:
            return self._no_plan(lane, error)
        except FirstlightError as error:
            lane.fail_waiting(error)
        return None

    def _no_plan(self, lane: Lane, error: Overloaded) -> float | None:
        """Postgres is away: the requests wait for it, but not for ever."""
        logger.warning("no plan for %s now: %s", lane.model, error.message)
        now_s = time.monotonic()
        if now_s - self._away_since_s.setdefault(lane.model, now_s) < STORES_AWAY_S:
            return self._next_backoff(lane.model)
        self._away_since_s.pop(lane.model)
        lane.fail_waiting(error)
        return None

    def _figures(self, lane: Lane) -> LaneFigures:
        suspected_s, now_s = lane.suspected_s, time.monotonic()
        return LaneFigures(
            now_s=now_s,
            waiting=lane.waiting,
            running=lane.running,
            ready=len(lane.routes),
            max_concurrency=lane.places_each,
            starting=len(lane.starting),
            live_instances=self._table.live_instances(lane.model),
            max_instances=self._max_instances_of(lane.model) or 1,
            suspected_for_s=None if suspected_s is None else now_s - suspected_s,
        )

    async def _start(self, lane: Lane, need: Need) -> float | None:
        deadline_s, now_s = lane.latest_deadline_s(), time.monotonic()
        planned = await self._starter.plan(
            lane.model,
            deadline_s=max(0.0, deadline_s - now_s),
            may_wait=need is Need.FIRST,
            request_id=lane.first_request_id,
            waited_s=now_s - self._put_off_since_s.get(lane.model, now_s),
        )
        self._on_planned(lane.model, planned)
        if planned.plan is None:
            self._away_since_s.pop(lane.model, None)
        match planned.decision:
            case Place() | Migrate():
                self._backoff_s.pop(lane.model, None)
                self._put_off_since_s.pop(lane.model, None)
                await self._carry_out(lane, planned, deadline_s=deadline_s)
                return None
            case Wait(instance_id=None):
                self._put_off_since_s.setdefault(lane.model, now_s)
                # Whoever holds the GPUs may have nothing to do at any moment, and no notice tells of that.
                return max(SOONEST_LOOK_S, self._next_backoff(lane.model))
            case Wait(ready_in_s=ready_in_s):
                soonest_s = self._next_backoff(lane.model)
                return min(LATEST_LOOK_S, max(SOONEST_LOOK_S, soonest_s, ready_in_s or 0.0))
            case Reject(candidates=candidates) as rejection:
                if any(candidate.estimate is not None for candidate in candidates):
                    return await self._start_for_later(lane, rejection)
                return self._rejected(lane, rejection.reason, rejection.retry_after_s)

    async def _start_for_later(self, lane: Lane, rejection: Reject) -> float | None:
        """A host can take the start, but not within the deadline of who asks: begin it all the same.

        Otherwise a model whose first download takes longer than any client waits could never be served.
        """
        planned = await self._starter.plan(
            lane.model, deadline_s=None, may_wait=True, request_id=lane.first_request_id
        )
        self._on_planned(lane.model, planned)
        if planned.plan is None:
            return self._rejected(lane, rejection.reason, rejection.retry_after_s)
        if not lane.ready_capacity:
            lane.fail_waiting(
                StartTimeout(
                    f"model {lane.model!r} is starting: {rejection.reason}; come again then",
                    model=lane.model,
                    retry_after_s=rejection.retry_after_s,
                )
            )
        await self._carry_out(lane, planned, deadline_s=time.monotonic() + LATER_WITHIN_S)
        return None

    def _rejected(self, lane: Lane, reason: str, retry_after_s: float) -> float | None:
        is_hopeful = lane.ready_capacity or lane.starting or lane.draining or lane.suspected_s is not None
        if is_hopeful:
            # Not lost: what runs will come to them, or a place is being freed.
            return min(LATEST_LOOK_S, max(SOONEST_LOOK_S, self._next_backoff(lane.model), retry_after_s))
        lane.fail_waiting(
            NoCapacity(
                f"model {lane.model!r} cannot be started now: {reason}",
                model=lane.model,
                retry_after_s=retry_after_s,
            )
        )
        return None

    async def _carry_out(self, lane: Lane, planned: PlannedStart, *, deadline_s: float) -> None:
        plan = planned.plan
        assert plan is not None
        if self._table.state_of(plan.instance_id) is None:
            # Our own commit's notification may still be on its way; nobody must plan a second start.
            self._table.apply(
                InstanceNotice(
                    instance_id=plan.instance_id,
                    model=plan.model,
                    host_id=plan.host_id,
                    state=InstanceState.STARTING,
                    endpoint=None,
                    epoch=plan.epoch,
                    max_concurrency=plan.max_concurrency,
                )
            )
        await self._begin(lane, planned, deadline_s=deadline_s)

    async def _begin(self, lane: Lane, planned: PlannedStart, *, deadline_s: float) -> None:
        assert planned.plan is not None
        backoff_s = FIRST_BACKOFF_S
        # One clock for both stores: who has waited for Postgres does not wait as long again for Temporal.
        away_since_s = self._away_since_s.get(lane.model, time.monotonic())
        deadline_s = min(deadline_s, away_since_s + STORES_AWAY_S)
        while True:
            try:
                await self._starter.begin(planned)
                self._away_since_s.pop(lane.model, None)
                return
            except Overloaded as error:
                logger.warning("start of %s waits for Temporal: %s", lane.model, error.message)
                failure = error
            if time.monotonic() + backoff_s > deadline_s:
                break
            await asyncio.sleep(backoff_s)
            backoff_s = min(LONGEST_BACKOFF_S, 2 * backoff_s)
        self._away_since_s.pop(lane.model, None)
        lane.close(planned.plan.instance_id)
        await self._starter.give_up(planned, failure.message)
        lane.fail_waiting(StartFailed(f"the start could not begin: {failure.message}", retry_after_s=5.0))

    def _start_failed(self, lane: Lane, notice: InstanceNotice) -> None:
        """The workflow has tried what it could; who waited hears why, unless something else can serve."""
        if lane.ready_capacity or lane.starting:
            return
        if notice.failure_code in (NoCapacity.code, StartAbandoned.code):
            # Those that were to give way have something to do again, or who began it is no more: it was not
            # tried. Whoever waits waits on, and a start is planned anew.
            return
        sentence = notice.failure or "its host gave no reason"
        lane.fail_waiting(
            StartFailed(
                f"model {lane.model!r} could not be started: {sentence}",
                model=lane.model,
                instance_id=notice.instance_id,
                cause=notice.failure_code,
                retry_after_s=5.0,
            )
        )

    def _next_backoff(self, model: str) -> float:
        backoff_s = self._backoff_s.get(model, FIRST_BACKOFF_S)
        self._backoff_s[model] = min(LONGEST_BACKOFF_S, 2 * backoff_s)
        return backoff_s

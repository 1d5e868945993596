"""The two transactions that hand out GPUs: the first plan of a start, and the next one after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.contracts.starts import ReplanInput, ReplanReceipt, StartPlan
from firstlight.database.connection import Database
from firstlight.database.current_plan import replacement_of
from firstlight.database.decision_json import candidates_markdown
from firstlight.database.fleet_view import FleetView, read_fleet
from firstlight.database.giving_way import write_migrate
from firstlight.database.instance_closing import close_instance, lock_instance, release_gpus
from firstlight.database.instance_limits import at_maximum
from firstlight.database.locks import lock_decision
from firstlight.database.plan_writing import Asked, GpuTaken, write_place, write_refusal
from firstlight.database.records import PlannedStart
from firstlight.domain.errors import ModelBeingDeleted, NoCapacity, StartFailed, UnknownModel
from firstlight.domain.fleet import StartRequest
from firstlight.domain.lifecycle import InstanceState, ModelState
from firstlight.domain.names import HostId, InstanceId
from firstlight.domain.scheduler import Decision, Migrate, Place, decide

ATTEMPTS = 5
# No name of a model.
NOBODY = "/"
Answer = TypeVar("Answer")
OnChosen = Callable[[Place | Migrate, FleetView], None]
# What these engines have to do now, by instance, as they say themselves; None for one that does not answer.
AskEngines = Callable[[Sequence[MovingInstance]], Awaitable[Mapping[str, EngineLoad | None]]]


class _NotAsked(Exception):
    """The decision would have instances give way that nobody has just asked what they do."""

    def __init__(self, victims: Sequence[MovingInstance]) -> None:
        super().__init__()
        self.victims = victims


async def nobody_asks(victims: Sequence[MovingInstance]) -> Mapping[str, EngineLoad | None]:
    """Where no engine can be reached none is made to give way."""
    return {}


async def plan_start(
    database: Database,
    *,
    model: str,
    deadline_s: float | None,
    may_wait: bool,
    request_id: str,
    now_unix_s: float,
    excluded_hosts: frozenset[HostId] = frozenset(),
    waited_s: float | None = None,
    on_chosen: OnChosen = lambda chosen, view: None,
    ask_engines: AskEngines = nobody_asks,
) -> PlannedStart:
    """Decide and make it real in one transaction: decision, instance and GPUs, or none of them.

    Beside what the scheduler answers: at the model's maximum of instances the answer is Wait for one that
    starts or has just become ready, or Reject. `on_chosen` hears of a placement before it is written, so
    that bytes can move meanwhile; it must not block, and the placement may yet fail. Before others are made
    to give way `ask_engines` is asked what they do: what hosts wrote of them is a second or more old.
    Raises: UnknownModel, ModelBeingDeleted, DatabaseUnavailable.
    """
    asked = Asked(request_id=request_id, model=model, deadline_s=deadline_s)
    loads: dict[str, EngineLoad | None] = {}

    async def attempt(session: AsyncSession, may_free: bool) -> PlannedStart:
        view = await read_fleet(session, model=model, now_unix_s=now_unix_s, loads=loads)
        if view.wanted.state is ModelState.DELETING:
            raise ModelBeingDeleted(f"model {model!r} is being deleted", model=model)
        request = StartRequest(
            view.wanted.model, deadline_s, excluded_hosts, may_wait, may_free, waited_s=waited_s
        )
        decision = at_maximum(view, may_wait=may_wait) or decide(request, view.snapshot)
        if not isinstance(decision, Place | Migrate):
            decision_id = await write_refusal(session, asked=asked, decision=decision)
            plan, chosen = None, None
        else:
            _check_asked(decision, view, loads)
            on_chosen(decision, view)
            # Let what it has set going be sent before the next statement takes the event loop.
            await asyncio.sleep(0)
            plan = await _write(session, asked, view, decision, reason="the soonest start")
            decision_id, chosen = plan.decision_id, decision.host_id
        return PlannedStart(
            decision_id=decision_id,
            decision=decision,
            plan=plan,
            candidates_markdown=candidates_markdown(decision.candidates, chosen=chosen),
        )

    return await _decided(database, model, attempt, loads=loads, ask_engines=ask_engines)


def _check_asked(decision: Place | Migrate, view: FleetView, loads: Mapping[str, EngineLoad | None]) -> None:
    """Raises: _NotAsked."""
    if isinstance(decision, Place):
        return
    concerned = [one.instance_id for one in decision.victims]
    concerned += [one.to_instance_id for one in decision.victims if one.to_instance_id is not None]
    if unasked := [one for one in concerned if one not in loads]:
        raise _NotAsked([view.serving[one] for one in unasked])


async def _write(
    session: AsyncSession,
    asked: Asked,
    view: FleetView,
    decision: Place | Migrate,
    *,
    reason: str,
    instance_id: str | None = None,
) -> StartPlan:
    """Raises: GpuTaken."""
    if isinstance(decision, Migrate):
        return await write_migrate(
            session, asked=asked, view=view, decision=decision, reason=reason, instance_id=instance_id
        )
    return await write_place(
        session, asked=asked, view=view, decision=decision, reason=reason, instance_id=instance_id
    )


async def rehearse_plan(session: AsyncSession) -> None:
    """What every decision reads, for a model that cannot exist: a fresh connection learns it from this."""
    await lock_decision(session, NOBODY, is_last_attempt=False)
    with suppress(UnknownModel):
        await read_fleet(session, model=NOBODY, now_unix_s=0.0)


async def replan_start(
    database: Database,
    request: ReplanInput,
    *,
    now_unix_s: float,
    ask_engines: AskEngines = nobody_asks,
) -> ReplanReceipt:
    """Move the start to another host under a new epoch, or mark it failed and release its GPUs.

    Idempotent per failed plan: asked again about it, the answer is the plan that replaced it.
    """
    loads: dict[str, EngineLoad | None] = dict.fromkeys(request.spared)

    async def attempt(session: AsyncSession, may_free: bool) -> ReplanReceipt:
        return await _replan(session, request, now_unix_s, loads=loads, may_free=may_free)

    return await _decided(database, request.plan.model, attempt, loads=loads, ask_engines=ask_engines)


async def _decided(
    database: Database,
    model: str,
    attempt: Callable[[AsyncSession, bool], Awaitable[Answer]],
    *,
    loads: dict[str, EngineLoad | None],
    ask_engines: AskEngines,
) -> Answer:
    """Run one decision's transaction until no other decision takes its GPUs from under it.

    The last attempt touches no instance that runs: those change under no lock of ours.
    """
    for number in range(1, ATTEMPTS + 1):
        is_last = number == ATTEMPTS
        try:
            async with database.transaction() as session:
                await lock_decision(session, model, is_last_attempt=is_last)
                return await attempt(session, not is_last)
        except GpuTaken:
            continue
        except _NotAsked as unasked:
            # Not under the lock: an engine may take its time.
            answers = await ask_engines(unasked.victims)
            loads.update({one.instance_id: answers.get(one.instance_id) for one in unasked.victims})
    raise AssertionError("the last attempt shuts out all other decisions")


async def _replan(
    session: AsyncSession,
    request: ReplanInput,
    now_unix_s: float,
    *,
    loads: Mapping[str, EngineLoad | None],
    may_free: bool,
) -> ReplanReceipt:
    failed = request.plan
    row = await lock_instance(session, failed.instance_id)
    if row.epoch > failed.epoch:
        if (plan := await replacement_of(session, failed)) is not None:
            return ReplanReceipt(plan=plan, reason="this plan was replaced already")
        return ReplanReceipt(plan=None, reason="a later plan owns this start")
    if row.state != InstanceState.STARTING:
        return ReplanReceipt(
            plan=None, reason=f"the instance is {row.state}: {row.failure or row.end_reason or ''}"
        )
    await release_gpus(session, failed.instance_id)
    view = await read_fleet(session, model=failed.model, now_unix_s=now_unix_s, loads=loads)
    if view.wanted.state is ModelState.DELETING:
        await close_instance(session, row, outcome=InstanceState.STOPPED, reason="the model is being deleted")
        return ReplanReceipt(plan=None, reason="the model is being deleted")
    decision = _decide_again(request, view, may_free=may_free)
    asked = Asked(
        request_id=f"replan-{failed.instance_id}",
        model=failed.model,
        deadline_s=None,
        replaces=failed.decision_id,
    )
    if isinstance(decision, Place | Migrate):
        _check_asked(decision, view, loads)
        reason = f"{failed.host_id} failed: {request.failure}"
        plan = await _write(session, asked, view, decision, reason=reason, instance_id=failed.instance_id)
        return ReplanReceipt(plan=plan, reason=reason)
    await write_refusal(session, asked=asked, decision=decision)
    reason = f"{request.failure}; {decision.reason}"
    # Nothing failed where only those that were to give way have something to do again: who waits goes on.
    code = NoCapacity.code if request.spared and not request.failed_hosts else StartFailed.code
    await close_instance(session, row, outcome=InstanceState.FAILED, reason=reason, failure_code=code)
    return ReplanReceipt(plan=None, reason=reason)


def _decide_again(request: ReplanInput, view: FleetView, *, may_free: bool) -> Decision:
    excluded = frozenset(HostId(host) for host in request.failed_hosts)
    wish = StartRequest(
        # It was let in under the model's maximum by its first plan.
        replace(view.wanted.model, max_instances=None),
        excluded_hosts=excluded,
        may_wait=False,
        may_free=may_free,
        replaces=InstanceId(request.plan.instance_id),
    )
    decision = decide(wish, view.snapshot)
    if isinstance(decision, Place | Migrate) or not request.silent_hosts:
        return decision
    # Nobody else can: a host whose agent was only being restarted is better than none.
    silent = frozenset(HostId(host) for host in request.silent_hosts)
    return decide(replace(wish, excluded_hosts=excluded - silent), view.snapshot)

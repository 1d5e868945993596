"""The two transactions that hand out GPUs: the first plan of a start, and the next one after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import CheckpointRef, ReplanInput, ReplanReceipt, StartPlan
from firstlight.database.connection import Database
from firstlight.database.decision_json import candidates_markdown, estimate_from_json
from firstlight.database.fleet_view import FleetView, read_fleet
from firstlight.database.instance_closing import close_instance, lock_instance, release_gpus
from firstlight.database.instance_limits import at_maximum
from firstlight.database.locks import lock_decision
from firstlight.database.plan_writing import Asked, GpuTaken, write_place, write_refusal
from firstlight.database.records import PlannedStart
from firstlight.database.tables import CheckpointRow, DecisionRow, InstanceRow, ModelRow
from firstlight.domain.errors import ModelBeingDeleted, StartFailed, UnknownModel
from firstlight.domain.fleet import StartRequest
from firstlight.domain.lifecycle import InstanceState, ModelState
from firstlight.domain.names import HostId
from firstlight.domain.scheduler import Migrate, Place, decide

ATTEMPTS = 5
# No name of a model.
NOBODY = "/"
Answer = TypeVar("Answer")
OnChosen = Callable[[Place, FleetView], None]


async def plan_start(
    database: Database,
    *,
    model: str,
    deadline_s: float | None,
    may_wait: bool,
    request_id: str,
    now_unix_s: float,
    excluded_hosts: frozenset[HostId] = frozenset(),
    on_chosen: OnChosen = lambda place, view: None,
) -> PlannedStart:
    """Decide and make it real in one transaction: decision, instance and GPUs, or none of them.

    Beside what the scheduler answers: at the model's maximum of instances the answer is Wait for one that
    starts or has just become ready, or Reject. `on_chosen` hears of a placement before it is written, so
    that bytes can move meanwhile; it must not block, and the placement may yet fail.
    Raises: UnknownModel, ModelBeingDeleted, DatabaseUnavailable.
    """
    asked = Asked(request_id=request_id, model=model, deadline_s=deadline_s)

    async def attempt(session: AsyncSession) -> PlannedStart:
        view = await read_fleet(session, model=model, now_unix_s=now_unix_s)
        if view.wanted.state is ModelState.DELETING:
            raise ModelBeingDeleted(f"model {model!r} is being deleted", model=model)
        request = StartRequest(view.wanted.model, deadline_s, excluded_hosts, may_wait)
        decision = at_maximum(view, may_wait=may_wait) or decide(request, view.snapshot)
        assert not isinstance(decision, Migrate), "no instance is shown to the scheduler"
        if not isinstance(decision, Place):
            decision_id = await write_refusal(session, asked=asked, decision=decision)
            plan, chosen = None, None
        else:
            on_chosen(decision, view)
            # Let what it has set going be sent before the next statement takes the event loop.
            await asyncio.sleep(0)
            plan = await write_place(
                session, asked=asked, view=view, decision=decision, reason="the soonest start"
            )
            decision_id, chosen = plan.decision_id, decision.host_id
        return PlannedStart(
            decision_id=decision_id,
            decision=decision,
            plan=plan,
            candidates_markdown=candidates_markdown(decision.candidates, chosen=chosen),
        )

    return await _decided(database, model, attempt)


async def rehearse_plan(session: AsyncSession) -> None:
    """What every decision reads, for a model that cannot exist: a fresh connection learns it from this."""
    await lock_decision(session, NOBODY, is_last_attempt=False)
    with suppress(UnknownModel):
        await read_fleet(session, model=NOBODY, now_unix_s=0.0)


async def replan_start(database: Database, request: ReplanInput, *, now_unix_s: float) -> ReplanReceipt:
    """Move the start to another host under a new epoch, or mark it failed and release its GPUs.

    Idempotent per failed plan: asked again about it, the answer is the plan that replaced it.
    """

    async def attempt(session: AsyncSession) -> ReplanReceipt:
        return await _replan(session, request, now_unix_s)

    return await _decided(database, request.plan.model, attempt)


async def _decided(
    database: Database, model: str, attempt: Callable[[AsyncSession], Awaitable[Answer]]
) -> Answer:
    """Run one decision's transaction until no other decision takes its GPUs from under it."""
    for number in range(1, ATTEMPTS + 1):
        try:
            async with database.transaction() as session:
                await lock_decision(session, model, is_last_attempt=number == ATTEMPTS)
                return await attempt(session)
        except GpuTaken:
            continue
    raise AssertionError("the last attempt shuts out all other decisions")


async def _replan(session: AsyncSession, request: ReplanInput, now_unix_s: float) -> ReplanReceipt:
    failed = request.plan
    row = await lock_instance(session, failed.instance_id)
    if row.epoch > failed.epoch:
        if (plan := await _replacement(session, failed)) is not None:
            return ReplanReceipt(plan=plan, reason="this plan was replaced already")
        return ReplanReceipt(plan=None, reason="a later plan owns this start")
    if row.state != InstanceState.STARTING:
        return ReplanReceipt(
            plan=None, reason=f"the instance is {row.state}: {row.failure or row.end_reason or ''}"
        )
    await release_gpus(session, failed.instance_id)
    view = await read_fleet(session, model=failed.model, now_unix_s=now_unix_s)
    if view.wanted.state is ModelState.DELETING:
        await close_instance(session, row, outcome=InstanceState.STOPPED, reason="the model is being deleted")
        return ReplanReceipt(plan=None, reason="the model is being deleted")
    excluded = frozenset(HostId(host) for host in request.failed_hosts)
    decision = decide(StartRequest(view.wanted.model, None, excluded, may_wait=False), view.snapshot)
    if not isinstance(decision, Place) and request.silent_hosts:
        # Nobody else can: a host whose agent was only being restarted is better than none.
        excluded -= frozenset(HostId(host) for host in request.silent_hosts)
        decision = decide(StartRequest(view.wanted.model, None, excluded, may_wait=False), view.snapshot)
    assert not isinstance(decision, Migrate), "no instance is shown to the scheduler"
    asked = Asked(
        request_id=f"replan-{failed.instance_id}",
        model=failed.model,
        deadline_s=None,
        replaces=failed.decision_id,
    )
    if isinstance(decision, Place):
        reason = f"{failed.host_id} failed: {request.failure}"
        plan = await write_place(
            session, asked=asked, view=view, decision=decision, reason=reason, instance_id=failed.instance_id
        )
        return ReplanReceipt(plan=plan, reason=reason)
    await write_refusal(session, asked=asked, decision=decision)
    reason = f"{request.failure}; {decision.reason}"
    await close_instance(
        session, row, outcome=InstanceState.FAILED, reason=reason, failure_code=StartFailed.code
    )
    return ReplanReceipt(plan=None, reason=reason)


async def _replacement(session: AsyncSession, failed: StartPlan) -> StartPlan | None:
    """The plan that replaced this very one, if the instance still starts under it."""
    found = await session.execute(
        select(DecisionRow, InstanceRow, ModelRow, CheckpointRow)
        .join(InstanceRow, InstanceRow.decision_id == DecisionRow.decision_id)
        .join(ModelRow, ModelRow.model_id == InstanceRow.model_id)
        .join(CheckpointRow, CheckpointRow.checkpoint_id == InstanceRow.checkpoint_id)
        .where(DecisionRow.replaces == failed.decision_id, InstanceRow.state == InstanceState.STARTING)
    )
    rows = found.one_or_none()
    if rows is None:
        return None
    decision, instance, model, checkpoint = rows
    return StartPlan(
        decision_id=decision.decision_id,
        instance_id=instance.instance_id,
        epoch=instance.epoch,
        host_id=instance.host_id,
        gpu_indices=list(decision.gpu_indices),
        model=instance.model,
        checkpoint=CheckpointRef(
            checkpoint_id=checkpoint.checkpoint_id,
            source=model.source,
            dtype=model.dtype,
            size_bytes=checkpoint.size_bytes or model.size_bytes,
            manifest_digest=checkpoint.manifest_digest or "",
        ),
        estimate=estimate_from_json(decision.estimate or {}),
        max_concurrency=instance.max_concurrency,
        keep_alive_s=instance.keep_alive_s,
        decided_at_unix_s=decision.decided_at.timestamp(),
        context_length=model.context_length,
    )

"""Replays of ColdStart: the same instance is placed anew under a new epoch, and its workflow carries it out.

--from-failure goes on behind all the run had done (a finished download is not repeated); --from-start asks
for the whole start again.
"""

from __future__ import annotations

import time

from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from firstlight.contracts.naming import COLD_START
from firstlight.contracts.starting import start_cold_start
from firstlight.contracts.starts import (
    AbandonInput,
    AbandonReceipt,
    ColdStartInput,
    ReplanReceipt,
    StartPlan,
)
from firstlight.database.instances_repository import get_instance
from firstlight.database.start_resuming import resume_start
from firstlight.database.starts_repository import abandon_start
from firstlight.domain.errors import Conflict, FirstlightError, StaleEpoch
from firstlight.domain.lifecycle import InstanceState
from firstlight.recovery.report import Report, reservation_of
from firstlight.recovery.reset_point import ResetPoint, point_of_open_work, point_where_it_gave_up
from firstlight.recovery.stage import Stage


async def from_failure(stage: Stage) -> Report:
    """Raises: FirstlightError, with nothing changed."""
    if stage.was_cut_off:
        return await _go_on_where_it_was_cut_off(stage)
    request: ColdStartInput = await stage.recorded.input(ColdStartInput)
    point = point_where_it_gave_up(stage.recorded, COLD_START)
    plan = await _resume(stage, request.plan.instance_id)
    reserves = reservation_of(plan, is_rehearsal=stage.is_rehearsal)
    sentence = f"go on where it gave up (event {point.event_id}) with a new plan"
    if stage.is_rehearsal:
        return stage.tell(sentence, reserves=reserves)
    run_id = await _or_undo(stage, plan, point)
    return stage.tell(sentence, reserves=reserves, new_run_id=run_id)


async def from_start(stage: Stage) -> Report:
    """Raises: FirstlightError, with nothing changed."""
    request: ColdStartInput = await stage.recorded.input(ColdStartInput)
    plan = await _resume(stage, request.plan.instance_id)
    reserves = reservation_of(plan, is_rehearsal=stage.is_rehearsal)
    sentence = f"start {plan.model} again, with at most {request.max_plans} plans"
    if stage.is_rehearsal:
        return stage.tell(sentence, reserves=reserves)
    again = ColdStartInput(plan=plan, max_plans=request.max_plans)
    try:
        handle = await start_cold_start(stage.client, again)
    except (RPCError, WorkflowAlreadyStartedError) as error:
        await _abandon(stage, plan, str(error))
        raise Conflict(f"Temporal did not take the start: {error}") from error
    return stage.tell(sentence, reserves=reserves, new_run_id=handle.result_run_id or "")


async def _resume(stage: Stage, instance_id: str) -> StartPlan:
    return await resume_start(
        stage.database,
        instance_id=instance_id,
        reason=stage.reason,
        now_unix_s=time.time(),
        is_rehearsal=stage.is_rehearsal,
    )


async def _go_on_where_it_was_cut_off(stage: Stage) -> Report:
    """Its GPUs may be its own still: then nothing is reserved, and the open step is asked for again."""
    plan = await _newest_plan(stage)
    async with stage.database.session() as session:
        instance = await get_instance(session, plan.instance_id)
    if instance.epoch != plan.epoch or instance.state is not InstanceState.STARTING:
        raise StaleEpoch(
            f"instance {plan.instance_id} is {instance.state} under epoch {instance.epoch}; this run holds "
            f"epoch {plan.epoch} and nothing any more: replay it --from-start",
            instance_id=plan.instance_id,
            epoch=plan.epoch,
        )
    point = point_of_open_work(stage.recorded)
    sentence = f"go on with {point.next_step} (event {point.event_id}); its GPUs are still its own"
    if stage.is_rehearsal:
        return stage.tell(sentence)
    return stage.tell(sentence, new_run_id=await stage.reset(point))


async def _newest_plan(stage: Stage) -> StartPlan:
    """What the run itself last knew."""
    request: ColdStartInput = await stage.recorded.input(ColdStartInput)
    plan = request.plan
    for step in stage.recorded.steps:
        later: StartPlan | None = None
        if step.name == "replan_start":
            replanned: ReplanReceipt | None = await stage.recorded.result(step, ReplanReceipt)
            later = replanned.plan if replanned else None
        elif step.name == "abandon_start":
            abandoned: AbandonReceipt | None = await stage.recorded.result(step, AbandonReceipt)
            later = abandoned.resumed if abandoned else None
        plan = later or plan
    return plan


async def _or_undo(stage: Stage, plan: StartPlan, point: ResetPoint) -> str:
    """A reset that is refused gives its GPUs back at once; one that dies here, by the reconciler."""
    try:
        return await stage.reset(point)
    except FirstlightError as error:
        await _abandon(stage, plan, error.message)
        raise


async def _abandon(stage: Stage, plan: StartPlan, failure: str) -> None:
    async with stage.database.transaction() as session:
        await abandon_start(session, AbandonInput(plan=plan, failure_code="conflict", failure=failure))

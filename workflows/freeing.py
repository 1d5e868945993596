"""How a start gets the GPUs of others: idle instances end, the requests of busy ones move to another host.

All victims go side by side. What they hold becomes the start's own in the transaction that gives it back, so
there is nothing to hand over here. One that stays (its migration failed, it is needed again) ends the plan:
the migrations that are still on their way are called off, and whoever was to move serves on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ActivityError, ChildWorkflowError, WorkflowAlreadyStartedError
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

from firstlight.contracts import naming
from firstlight.contracts.freeing import JoinMigrationInput, eviction_of, migration_of
from firstlight.contracts.migrations import MigrationResult
from firstlight.contracts.starting import TASK_TIMEOUT
from firstlight.contracts.starts import PlannedVictim, StartPlan
from workflows import control_calls


class StillTaken(Exception):
    """Victims that were to give way and did not; `cause` is what the first of them failed by."""

    def __init__(self, instance_ids: list[str], cause: ActivityError | ChildWorkflowError) -> None:
        super().__init__(str(cause))
        self.instance_ids = instance_ids
        self.cause = cause


async def free_gpus(plan: StartPlan, tell: Callable[[str], None]) -> None:
    """Returns once every victim is on its way out for good. Raises: StillTaken."""
    began_s = workflow.time()
    tasks = {asyncio.create_task(_give_way(plan, victim)): victim for victim in plan.victims}
    try:
        await workflow.wait(list(tasks), return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    stayed = [
        (victim.instance_id, end)
        for victim, end in zip(tasks.values(), ends, strict=True)
        if isinstance(end, ActivityError | ChildWorkflowError)
    ]
    if stayed:
        raise StillTaken([instance_id for instance_id, _ in stayed], stayed[0][1])
    predicted_s = max(victim.seconds for victim in plan.victims)
    tell(f"room made after {workflow.time() - began_s:.2f} s, predicted {predicted_s:.2f} s")


async def _give_way(plan: StartPlan, victim: PlannedVictim) -> None:
    """Raises: ActivityError, ChildWorkflowError."""
    if victim.is_moved:
        await _move(plan, victim)
    else:
        await control_calls.evict_instance(eviction_of(plan, victim))


async def _move(plan: StartPlan, victim: PlannedVictim) -> None:
    request = migration_of(plan, victim)
    try:
        await workflow.execute_child_workflow(
            # By name: a migration starts its destination by this module's own caller.
            naming.LIVE_MIGRATION,
            request,
            id=request.migration_id,
            result_type=MigrationResult,
            task_queue=naming.CONTROL_QUEUE,
            task_timeout=TASK_TIMEOUT,
            # It finishes or undoes itself, whatever becomes of the start.
            parent_close_policy=ParentClosePolicy.ABANDON,
            cancellation_type=ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            static_summary=f"Move {victim.model} from {victim.host_id} to {request.destination_host_id}: "
            f"it makes room for {plan.model}",
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(naming.MODEL, victim.model),
                    SearchAttributePair(naming.HOST, request.destination_host_id),
                    SearchAttributePair(naming.SOURCE_HOST, victim.host_id),
                    SearchAttributePair(naming.ESTIMATED_MS, round(victim.seconds * 1000)),
                ]
            ),
        )
    except WorkflowAlreadyStartedError:
        # A reset start, or the operator's: there is one migration of an instance at a time.
        await control_calls.join_migration(JoinMigrationInput(request.migration_id))

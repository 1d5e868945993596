"""LiveMigration: all requests of an instance move to another host; their token streams do not break.

start the destination ─▶ take the source's route away ─▶ move the requests ─▶ end the source
        │ fails                                              │ fails
        ▼                                                    ▼
the source never noticed                   the source gets its route back and serves on

The requests themselves go straight from engine to engine, in one activity on the source's host; a client's
stream follows by itself. Source: ServerlessLLM, OSDI'24, section 5.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, is_cancelled_exception
from temporalio.workflow import ParentClosePolicy

from firstlight.contracts import naming
from firstlight.contracts.failures import error_of
from firstlight.contracts.instances import BeginDrainInput, StopSignal
from firstlight.contracts.migrations import (
    FinishMigrationInput,
    MigrationInput,
    MigrationResult,
    MoveInput,
    MoveReceipt,
    MovingInstance,
    ResumedMigration,
    ServeOnInput,
)
from firstlight.contracts.starting import TASK_TIMEOUT
from firstlight.contracts.starts import ColdStartInput, StartPlan
from firstlight.domain import errors
from workflows import control_calls, host_calls
from workflows.cold_start import ColdStart
from workflows.migration_tables import moved_table
from workflows.story import Story

STARTING, MOVING, ENDING = "starting destination", "moving requests", "ending source"
# What is left at the source after the move came in while its route was being taken away.
SOURCE_DRAIN_S = 30.0


@workflow.defn(name=naming.LIVE_MIGRATION)
class LiveMigration:
    @workflow.init
    def __init__(self, request: MigrationInput) -> None:
        self._request = request
        self._story = Story()
        self._start_s = 0.0
        self._move = MoveReceipt()
        self._has_drained = False
        self._source_is_gone = False
        self._attempt = 1

    @workflow.run
    async def run(self, request: MigrationInput) -> MigrationResult:
        while True:
            try:
                destination = await self._destination()
                await self._drain_source()
                await self._move_requests(destination)
                break
            except (ActivityError, ChildWorkflowError, ApplicationError, asyncio.CancelledError) as failure:
                resumed = await asyncio.shield(self._undo(failure))
                if is_cancelled_exception(failure):
                    raise
                if resumed is None:
                    raise _failed(self._request, failure) from failure
            self._resume(resumed)
        await asyncio.shield(self._settle())
        return MigrationResult(
            migration_id=request.migration_id,
            destination_instance_id=self._request.destination_instance_id,
            destination_host_id=self._request.destination_host_id,
            start_s=self._start_s,
            move=self._move,
        )

    async def _destination(self) -> MovingInstance:
        request = self._request
        if request.reused is not None:
            self._story.tell(f"{request.reused.instance_id} on {request.reused.host_id} is idle: reused")
            return request.reused
        assert request.destination is not None
        return await self._start(request.destination)

    async def _start(self, plan: StartPlan) -> MovingInstance:
        """Raises: ChildWorkflowError; its own compensation has released what it held by then."""
        began_s = workflow.time()
        self._story.enter(STARTING)
        self._story.tell(
            f"{self._request.source.instance_id} on {self._request.source.host_id} moves to {plan.host_id} "
            f"({self._request.reason}); a start there is predicted to take {plan.estimate.total_s:.2f} s"
        )
        result = await workflow.execute_child_workflow(
            ColdStart.run,
            ColdStartInput(plan=plan, max_plans=1),
            id=naming.cold_start_id(plan.model, plan.instance_id),
            task_queue=naming.CONTROL_QUEUE,
            task_timeout=TASK_TIMEOUT,
            # Not ended with its parent: it undoes itself, and a reset of the parent must find it whole.
            parent_close_policy=ParentClosePolicy.ABANDON,
            static_summary=f"Start {plan.model} on {plan.host_id}, where {self._request.migration_id} goes",
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(naming.MODEL, plan.model),
                    SearchAttributePair(naming.HOST, plan.host_id),
                    SearchAttributePair(naming.ESTIMATED_MS, round(plan.estimate.total_s * 1000)),
                ]
            ),
        )
        self._start_s = workflow.time() - began_s
        self._story.tell(f"destination ready at {result.endpoint} after {self._start_s:.2f} s")
        return MovingInstance(
            instance_id=result.instance_id, epoch=plan.epoch, host_id=result.host_id, endpoint=result.endpoint
        )

    async def _drain_source(self) -> None:
        """New requests go elsewhere from here on. Raises: ApplicationError when it ends for another cause."""
        source = self._request.source
        receipt = await control_calls.begin_drain(
            BeginDrainInput(source.instance_id, source.epoch, self._request.migration_id)
        )
        if not receipt.draining:
            self._source_is_gone = True
            raise ApplicationError(
                f"the source is {receipt.state} already", type=errors.Conflict.code, non_retryable=True
            )
        self._has_drained = True

    async def _move_requests(self, destination: MovingInstance) -> None:
        request = self._request
        self._story.enter(MOVING)
        order = MoveInput(
            migration_id=request.migration_id,
            source=request.source,
            destination=destination,
            transfer=request.transfer,
            delta_tokens=request.delta_tokens,
        )
        try:
            self._move = await host_calls.move_requests(order)
        except ActivityError as failure:
            # Nobody answers for it: its requests go on elsewhere, and here is where they find room.
            self._source_is_gone = not is_cancelled_exception(failure)
            raise
        self._story.tell(
            f"{self._move.moved} requests moved, {self._move.ended} ended by themselves; the longest stood "
            f"still for {self._move.held_s * 1000:.0f} ms",
            head=moved_table(self._move),
        )
        if self._move.failed:
            raise ApplicationError(
                f"{self._move.failed} requests stayed at the source: {self._move.error}",
                type=errors.EngineGone.code,
                non_retryable=True,
            )

    async def _settle(self) -> None:
        request = self._request
        self._story.enter(ENDING)
        await self._stop(request.source.instance_id, f"migrated to {request.destination_host_id}")
        await self._finish("completed", "")
        self._story.end("completed", actual_s=self._start_s + self._move.elapsed_s)

    def _resume(self, resumed: ResumedMigration) -> None:
        """Another attempt by an operator's word, as if nothing had been done yet but what has moved."""
        self._request = replace(self._request, destination=resumed.destination, reused=resumed.reused)
        self._attempt = resumed.attempt
        self._start_s, self._move = 0.0, MoveReceipt()
        self._has_drained = self._source_is_gone = False
        self._story.tell(f"resumed by an operator, to {self._request.destination_host_id}")

    async def _undo(self, failure: BaseException) -> ResumedMigration | None:
        """The source serves on if it lives, and a destination that nothing moved to goes; else it stays.

        Returns another attempt, if an operator has granted one.
        """
        request = self._request
        error = error_of(failure)
        state = "cancelled" if is_cancelled_exception(failure) else "failed"
        self._story.tell(f"{state}: {error.message}")
        if self._has_drained:
            serves = await control_calls.serve_on(ServeOnInput(request.migration_id, request.source))
            self._story.tell("the source serves on" if serves else "the source has ended")
        if self._start_s and not self._move.moved and not self._source_is_gone:
            await self._stop(request.destination_instance_id, f"{request.migration_id} {state}")
        resumed = await self._finish(state, error.message)
        if resumed is not None and state == "failed":
            return resumed
        self._story.end(state)
        return None

    async def _stop(self, instance_id: str, reason: str) -> None:
        handle = workflow.get_external_workflow_handle(naming.instance_workflow_id(instance_id))
        try:
            await handle.signal(naming.STOP, StopSignal(reason=reason, drain_timeout_s=SOURCE_DRAIN_S))
        except ApplicationError as failure:
            # It has ended by itself meanwhile: there is nothing left to end.
            self._story.tell(f"{instance_id} was not told to end: {failure.message}")

    async def _finish(self, state: str, failure: str) -> ResumedMigration | None:
        receipt = await control_calls.finish_migration(
            FinishMigrationInput(
                migration_id=self._request.migration_id,
                state=state,
                start_s=self._start_s,
                move=self._move,
                failure=failure,
                attempt=self._attempt,
            )
        )
        return receipt.resumed


def _failed(request: MigrationInput, failure: BaseException) -> ApplicationError:
    error = error_of(failure)
    return ApplicationError(
        f"{request.source.instance_id} was not moved to {request.destination_host_id}: {error.message}",
        {"cause": error.code},
        type=errors.MigrationFailed.code,
        non_retryable=True,
    )

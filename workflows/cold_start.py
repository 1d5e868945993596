"""ColdStart: carry one placement decision out, on another host if need be, or undo it without a trace.

On the client's path stands one activity, `bring_up`; the client itself is woken by its SQL commit and does
not wait for this workflow. Whatever ends the start early, its GPUs are released before the run closes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, is_cancelled_exception

from firstlight.contracts.failures import codes_of, error_of, never_taken_up
from firstlight.contracts.instances import StopInstanceInput
from firstlight.contracts.naming import COLD_START
from firstlight.contracts.starting import DOWNLOADING, LOADING, first_phase, is_fetched
from firstlight.contracts.starts import (
    AbandonInput,
    BringUpInput,
    BringUpReceipt,
    ColdStartInput,
    ColdStartResult,
    DownloadInput,
    RecordStartInput,
    ReplanInput,
    StartPlan,
)
from firstlight.domain import errors
from workflows import control_calls, host_calls, tables
from workflows.downloading import download
from workflows.freeing import StillTaken, free_gpus
from workflows.launching import launch_instance
from workflows.story import Story

# Histories from before bring_up could follow a download do one after the other.
SIDE_BY_SIDE = "bring-up-beside-download"
# Those from before this was told apart brought up once more what had been called off.
CALLED_OFF = "called-off-is-no-failure"
# This host's copy is bad or gone: fetching it again mends that.
FETCH_AGAIN = codes_of(
    errors.ChecksumMismatch, errors.UnknownCheckpoint, errors.CheckpointMissing, errors.ManifestInvalid
)
# A download's bad minute: its own workflow repeats it with patience, bring_up need not.
FETCHING_FAILED = codes_of(errors.SourceUnreachable, errors.DiskFull, errors.Cancelled)
# The model, its source or the request is at fault: no other host would do better.
HOPELESS = codes_of(
    errors.InvalidInput,
    errors.UnknownModel,
    errors.Conflict,
    errors.SourceCorrupt,
    errors.SourceUnsupported,
    errors.CheckpointMismatch,
)


@workflow.defn(name=COLD_START)
class ColdStart:
    @workflow.init
    def __init__(self, request: ColdStartInput) -> None:
        self._plan = request.plan
        self._plans_tried = 1
        # Of those an operator's resumption allows anew.
        self._plans_failed = 0
        self._stopped_epoch: int | None = None
        # Those that were to give way stayed, and nothing else went wrong.
        self._has_lost_its_room = False
        self._story = Story()
        self._tell_plan("placed")

    @workflow.run
    async def run(self, request: ColdStartInput) -> ColdStartResult:
        while True:
            try:
                receipt = await self._bring_up_somewhere(request.max_plans)
                break
            except (ActivityError, ChildWorkflowError, asyncio.CancelledError) as failure:
                # Cancelled or failed, the GPUs go back; a second cancellation must not interrupt that.
                resumed = await asyncio.shield(self._undo(failure))
                if is_cancelled_exception(failure):
                    raise
                if resumed is None:
                    raise self._start_failed(failure) from failure
            self._take(resumed, "resumed by an operator")
            self._plans_failed = 0
        await asyncio.shield(self._settle(receipt))
        return ColdStartResult(
            instance_id=self._plan.instance_id,
            host_id=self._plan.host_id,
            endpoint=receipt.endpoint,
            plans_tried=self._plans_tried,
            phases=receipt.phases,
        )

    async def _bring_up_somewhere(self, max_plans: int) -> BringUpReceipt:
        """Raises: the last plan's failure, when no other may be tried or none is left."""
        failed_hosts: list[str] = []
        silent_hosts: list[str] = []
        spared: list[str] = []
        while True:
            try:
                receipt = await self._carry_out()
                break
            except StillTaken as taken:
                # No fault of the host: it may be chosen again, but not at the cost of the same instances.
                spared += taken.instance_ids
                may_go_on = self._may_replan(taken.cause, max_plans, is_hopeless=False)
                if not may_go_on or not await self._replan(taken.cause, failed_hosts, silent_hosts, spared):
                    self._has_lost_its_room = not failed_hosts
                    raise taken.cause from None
            except (ActivityError, ChildWorkflowError) as failure:
                if is_cancelled_exception(failure) and workflow.cancellation_reason() is not None:
                    raise
                failed_hosts.append(self._plan.host_id)
                if never_taken_up(failure):
                    silent_hosts.append(self._plan.host_id)
                if not self._may_replan(failure, max_plans):
                    raise
                if not await self._replan(failure, failed_hosts, silent_hosts, spared):
                    raise
        if workflow.cancellation_reason() is not None:
            # The cancellation came while bring_up was about to finish: it asked for no instance.
            raise asyncio.CancelledError
        return receipt

    async def _carry_out(self) -> BringUpReceipt:
        """Raises: ActivityError, ChildWorkflowError, StillTaken."""
        if not self._plan.victims:
            return await self._bring_up()
        return await self._bring_up_beside_freeing()

    async def _bring_up_beside_freeing(self) -> BringUpReceipt:
        """The bytes come up to DRAM while others give way; bring_up attaches when the GPUs are its own."""
        plan = self._plan
        self._story.tell("; ".join(tables.fate(victim) for victim in plan.victims))
        freeing = asyncio.create_task(free_gpus(plan, self._story.tell))
        bringing = asyncio.create_task(self._bring_up())
        try:
            await workflow.wait([freeing, bringing], return_when=asyncio.FIRST_EXCEPTION)
            if freeing.done() and not bringing.done():
                freeing.result()
            return await bringing
        finally:
            # Not cancelled once the instance serves: what remains of a migration then is to close its books.
            await _ended(freeing, bringing)

    async def _bring_up(self) -> BringUpReceipt:
        """Raises: ActivityError, ChildWorkflowError."""
        self._story.enter(first_phase(self._plan), host_id=self._plan.host_id)
        try:
            if not is_fetched(self._plan):
                return await host_calls.bring_up(BringUpInput(plan=self._plan))
            if workflow.patched(SIDE_BY_SIDE):
                return await self._bring_up_beside_download()
            return await self._bring_up_after_download()
        except ActivityError as failure:
            error = error_of(failure)
            if error.code not in FETCH_AGAIN:
                raise
            self._story.tell(f"the copy on {self._plan.host_id} is bad ({error.code}): fetching it again")
        return await self._bring_up_after_download()

    async def _bring_up_after_download(self) -> BringUpReceipt:
        download_s = await self._download()
        return await host_calls.bring_up(BringUpInput(plan=self._plan, download_s=download_s))

    async def _bring_up_beside_download(self) -> BringUpReceipt:
        """The engine computes with the first layers while the last ones come over the network.

        Its download goes on without us once the start is over: the bytes still have to reach the SSD.
        """
        downloading = asyncio.create_task(self._download())
        bringing = asyncio.create_task(host_calls.bring_up(BringUpInput(plan=self._plan, fetch=True)))
        try:
            await workflow.wait([downloading, bringing], return_when=asyncio.FIRST_COMPLETED)
            if not bringing.done():
                downloading.result()
            try:
                return await bringing
            except ActivityError as failure:
                # A store's "cancelled" is a download's bad minute, Temporal's is ours.
                if is_cancelled_exception(failure) and workflow.patched(CALLED_OFF):
                    raise
                if error_of(failure).code not in FETCHING_FAILED:
                    raise
                self._story.tell(f"not while it was fetched ({error_of(failure).code}): once it is there")
            download_s = await downloading
        finally:
            await _ended(downloading, bringing)
        return await host_calls.bring_up(BringUpInput(plan=self._plan, download_s=download_s))

    async def _download(self) -> float:
        """Seconds it took; the plan learns the digest, so that the load checks the very same bytes."""
        plan = self._plan
        began_s = workflow.time()
        self._story.enter(DOWNLOADING)
        receipt = await download(
            DownloadInput(
                host_id=plan.host_id,
                model=plan.model,
                checkpoint=plan.checkpoint,
                estimated_s=plan.estimate.download_s,
            )
        )
        checkpoint = replace(
            plan.checkpoint, manifest_digest=receipt.manifest_digest, size_bytes=receipt.size_bytes
        )
        self._plan = replace(plan, checkpoint=checkpoint)
        self._story.enter(LOADING)
        return workflow.time() - began_s

    def _may_replan(self, failure: BaseException, max_plans: int, *, is_hopeless: bool | None = None) -> bool:
        error = error_of(failure)
        self._story.tell(f"plan {self._plans_tried} failed: {error.code}: {error.message}")
        self._plans_failed += 1
        hopeless = error.code in HOPELESS if is_hopeless is None else is_hopeless
        return self._plans_failed < max_plans and not hopeless

    async def _replan(
        self,
        failure: BaseException,
        failed_hosts: list[str],
        silent_hosts: list[str],
        spared: list[str],
    ) -> bool:
        if not never_taken_up(failure):
            await self._stop_engine("start failed")
        receipt = await control_calls.replan_start(
            ReplanInput(
                plan=self._plan,
                failed_hosts=failed_hosts,
                failure=error_of(failure).message,
                silent_hosts=silent_hosts,
                spared=spared,
            )
        )
        if receipt.plan is None:
            self._story.tell(f"no other plan: {receipt.reason}")
            return False
        self._take(receipt.plan, "placed again")
        return True

    def _take(self, plan: StartPlan, what: str) -> None:
        self._plan = plan
        self._plans_tried += 1
        self._tell_plan(what)

    async def _undo(self, failure: BaseException) -> StartPlan | None:
        """The plan to go on with, where an operator has resumed a start that had failed before."""
        error = error_of(failure)
        outcome = "stopped" if is_cancelled_exception(failure) else "failed"
        if not never_taken_up(failure):
            await self._stop_engine(outcome)
        receipt = await control_calls.abandon_start(
            AbandonInput(
                plan=self._plan,
                failure_code=errors.NoCapacity.code if self._has_lost_its_room else error.code,
                failure=error.message,
                outcome=outcome,
            )
        )
        if receipt.resumed is not None and outcome == "failed":
            return receipt.resumed
        self._story.tell(f"{outcome}: GPUs released")
        self._story.end(outcome)
        return None

    async def _stop_engine(self, reason: str) -> None:
        plan = self._plan
        if self._stopped_epoch == plan.epoch:
            return
        try:
            await host_calls.stop_instance(
                plan.host_id, StopInstanceInput(plan.instance_id, plan.epoch, 0.0, reason)
            )
            self._stopped_epoch = plan.epoch
        except ActivityError as failure:
            # The epoch fences off what may still run there, and the reconciler ends it.
            self._story.tell(f"engine on {plan.host_id} not stopped: {error_of(failure).message}")

    async def _settle(self, receipt: BringUpReceipt) -> None:
        """The client has its route already: from here on nothing is on its path."""
        phases = receipt.phases
        self._story.tell(
            f"ready at {receipt.endpoint} after {phases.total_s:.2f} s",
            head=tables.compare(self._plan.estimate, phases),
        )
        await launch_instance(self._plan, receipt.endpoint)
        try:
            await control_calls.record_start(
                RecordStartInput(plan=self._plan, phases=phases, plans_tried=self._plans_tried)
            )
        except ActivityError as failure:
            # The instance serves; a lost observation is no reason to call its start failed.
            self._story.tell(f"not recorded: {error_of(failure).message}")
        self._story.end("ready", actual_s=phases.total_s)

    def _tell_plan(self, what: str) -> None:
        plan = self._plan
        self._story.tell(
            f"{what} on {plan.host_id}, GPUs {plan.gpu_indices}, epoch {plan.epoch}",
            head=tables.compare(plan.estimate, None),
        )

    def _start_failed(self, failure: BaseException) -> ApplicationError:
        error = error_of(failure)
        message = f"{self._plan.model} did not start after {self._plans_tried} plan(s): {error.message}"
        return ApplicationError(
            message, {"cause": error.code}, type=errors.StartFailed.code, non_retryable=True
        )


# Any: tasks of any result.
async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs and wait for it: what comes next must find nobody at work."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

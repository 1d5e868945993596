"""HostLifecycle: watches one host's lease; fails what it ran when that runs out; waits for its return."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from firstlight.contracts import naming
from firstlight.contracts.hosts import FailHostInput, HostInput, HostRegistered, LeaseWatchInput
from firstlight.contracts.instances import StopSignal
from firstlight.contracts.starts import Nothing
from workflows import control_calls
from workflows.mending import mend_host
from workflows.story import Story

WATCHES_PER_RUN = 100
STALE_START_S = 30.0


@workflow.defn(name=naming.HOST_LIFECYCLE)
class HostLifecycle:
    @workflow.init
    def __init__(self, request: HostInput) -> None:
        self._host_id = request.host_id
        self._newest = request.registration
        self._mended = 0
        self._story = Story()

    @workflow.signal(name=naming.HOST_REGISTERED)
    def registered(self, request: HostRegistered) -> None:
        # Signals of a restarted agent may overtake each other; only a newer registration counts.
        self._newest = max(self._newest, request.registration)

    @workflow.run
    async def run(self, request: HostInput) -> Nothing:
        for _ in range(WATCHES_PER_RUN):
            await self._watch_once()
            if workflow.info().is_continue_as_new_suggested():
                break
        workflow.continue_as_new(HostInput(host_id=self._host_id, registration=self._newest))

    async def _watch_once(self) -> None:
        watched = self._newest
        self._story.enter("ready")
        await self._mend_after_return(watched)
        receipt = await control_calls.watch_lease(LeaseWatchInput(self._host_id, watched))
        if receipt.ended_by == "elapsed":
            return
        if receipt.ended_by == "expired":
            await self._fail(watched)
        await workflow.wait_condition(lambda: self._newest > watched)

    async def _mend_after_return(self, registration: int) -> None:
        """A host that (re)joined may hold other things than Postgres believes: do not wait for the clock."""
        if self._mended == registration:
            return
        self._mended = registration
        mended = await mend_host(self._host_id, stale_start_s=STALE_START_S)
        self._story.tell(f"registration {registration}: {'; '.join(mended or []) or 'nothing to mend'}")

    async def _fail(self, registration: int) -> None:
        receipt = await control_calls.fail_host(
            FailHostInput(self._host_id, registration, reason="its lease ran out")
        )
        if not receipt.marked:
            return
        self._story.enter("lost")
        failed = ", ".join(receipt.failed_instances) or "none"
        self._story.tell(f"lost at registration {registration}; failed instances: {failed}")
        for instance_id in receipt.failed_instances:
            await self._tell_instance(instance_id)

    async def _tell_instance(self, instance_id: str) -> None:
        handle = workflow.get_external_workflow_handle(naming.instance_workflow_id(instance_id))
        try:
            await handle.signal(naming.STOP, StopSignal(f"{self._host_id} was lost", drain_timeout_s=0.0))
        except ApplicationError:
            # A start that had not come so far has no such workflow; ColdStart undoes it.
            workflow.logger.info("instance %s has no workflow to tell", instance_id)

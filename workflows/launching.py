"""How a start hands its instance over to the workflow that looks after it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

from firstlight.contracts import naming
from firstlight.contracts.instances import InstanceInput
from firstlight.contracts.starting import TASK_TIMEOUT
from firstlight.contracts.starts import StartPlan
from workflows.instance_lifecycle import InstanceLifecycle


async def launch_instance(plan: StartPlan, endpoint: str) -> None:
    """Start InstanceLifecycle; one that runs already (a reset start, a repeat) is left as it is."""
    request = InstanceInput(
        instance_id=plan.instance_id,
        epoch=plan.epoch,
        host_id=plan.host_id,
        model=plan.model,
        endpoint=endpoint,
        keep_alive_s=plan.keep_alive_s,
    )
    try:
        await workflow.start_child_workflow(
            InstanceLifecycle.run,
            request,
            id=naming.instance_workflow_id(plan.instance_id),
            task_queue=naming.CONTROL_QUEUE,
            task_timeout=TASK_TIMEOUT,
            parent_close_policy=ParentClosePolicy.ABANDON,
            static_summary=f"{plan.model} on {plan.host_id} at {endpoint}",
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(naming.MODEL, plan.model),
                    SearchAttributePair(naming.HOST, plan.host_id),
                    SearchAttributePair(naming.PHASE, "ready"),
                ]
            ),
        )
    except WorkflowAlreadyStartedError:
        workflow.logger.info("instance %s is looked after already", plan.instance_id)

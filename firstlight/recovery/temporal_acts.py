"""The two ways to let a closed workflow run again: reset it to a point of its history, or start it anew."""

from __future__ import annotations

import uuid

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import ResetReapplyExcludeType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.common import (
    RawValue,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
)
from temporalio.converter import decode_typed_search_attributes
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from firstlight.contracts import naming
from firstlight.contracts.starting import TASK_TIMEOUT
from firstlight.domain.errors import Conflict
from firstlight.recovery.found import FoundWorkflow
from firstlight.recovery.recorded import Recorded
from firstlight.recovery.reset_point import ResetPoint


async def reset(client: Client, found: FoundWorkflow, point: ResetPoint, *, reason: str) -> str:
    """Let a new run go on from `point`; its run id. The same reset asked for twice is one.

    Signals that came after the point reach the new run too; a cancellation does not.
    Raises: Conflict for a point the cluster refuses.
    """
    request = ResetWorkflowExecutionRequest(
        namespace=client.namespace,
        workflow_execution=WorkflowExecution(workflow_id=found.workflow_id, run_id=found.run_id),
        workflow_task_finish_event_id=point.event_id,
        reason=reason,
        request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{found.run_id}/{point.event_id}")),
        reset_reapply_exclude_types=[
            ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_CANCEL_REQUEST,
        ],
        identity=client.identity,
    )
    try:
        return (await client.workflow_service.reset_workflow_execution(request)).run_id
    except RPCError as error:
        raise Conflict(f"Temporal refuses the reset of {found.workflow_id}: {error.message}") from error


async def start_again(client: Client, found: FoundWorkflow, recorded: Recorded) -> str:
    """A new run of the same workflow with the same input and as much time; its run id. Raises: Conflict."""
    begun = recorded.history.events[0].workflow_execution_started_event_attributes
    known = decode_typed_search_attributes(begun.search_attributes)
    ours = {key.name for key in naming.SEARCH_ATTRIBUTES}
    attributes = [SearchAttributePair(p.key, p.value) for p in known if p.key.name in ours]
    try:
        handle = await client.start_workflow(
            found.workflow_type,
            args=[RawValue(payload) for payload in begun.input.payloads],
            id=found.workflow_id,
            task_queue=begun.task_queue.name,
            execution_timeout=begun.workflow_execution_timeout.ToTimedelta() or None,
            task_timeout=TASK_TIMEOUT,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            search_attributes=TypedSearchAttributes(attributes),
            static_summary=f"Replayed from its start; run {found.run_id} was {found.status}",
        )
    except WorkflowAlreadyStartedError as error:
        raise Conflict(f"{found.workflow_id} runs already") from error
    return handle.result_run_id or ""

"""How clients start and stop workflows: ids, queues, conflict rules and what the Temporal UI shows.

Everything a person sees of a run before it has done anything (summary, candidates, search attributes) is
set here, by the starter, because it costs the workflow nothing.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.service import RPCError, RPCStatusCode

from firstlight.contracts import naming
from firstlight.contracts.draining import DrainInput
from firstlight.contracts.hosts import HostInput, HostRegistered
from firstlight.contracts.instances import KeepAliveSignal, StopSignal
from firstlight.contracts.migrations import MigrationInput, MigrationResult
from firstlight.contracts.starts import ColdStartInput, ColdStartResult, StartPlan

# A start hands its ready instance over when all of its bytes are there: in milliseconds, or in seconds when
# its agent was killed meanwhile and another attempt has to find out.
HANDOVER_S = 20.0
# A killed control worker costs a start at most this long: then another one takes the workflow task.
TASK_TIMEOUT = timedelta(seconds=3)
DOWNLOADING = "downloading"
LOADING = "loading"


def is_fetched(plan: StartPlan) -> bool:
    """Whether its bytes come from elsewhere than its host."""
    return plan.estimate.tier in ("remote", "peer")


def first_phase(plan: StartPlan) -> str:
    return DOWNLOADING if is_fetched(plan) else LOADING


# Any: keyword arguments of Client.start_workflow, which are of many types.
def cold_start_options(request: ColdStartInput) -> dict[str, Any]:
    """Keyword arguments of `client.start_workflow("ColdStart", request, **options)`."""
    plan = request.plan
    attributes = TypedSearchAttributes(
        [
            SearchAttributePair(naming.MODEL, plan.model),
            SearchAttributePair(naming.HOST, plan.host_id),
            SearchAttributePair(naming.PHASE, first_phase(plan)),
            SearchAttributePair(naming.ESTIMATED_MS, round(plan.estimate.total_s * 1000)),
        ]
    )
    return {
        "id": naming.cold_start_id(plan.model, plan.instance_id),
        "task_queue": naming.CONTROL_QUEUE,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        # One start per instance id, ever: a repeat after the end must not bring a second engine up.
        "id_reuse_policy": WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        "task_timeout": TASK_TIMEOUT,
        "static_summary": (
            f"Start {plan.model} on {plan.host_id} from {plan.estimate.tier}, "
            f"predicted {plan.estimate.total_s:.2f} s"
        ),
        "static_details": _details(request),
        "search_attributes": attributes,
        "memo": {"decision_id": plan.decision_id, "instance_id": plan.instance_id, "epoch": plan.epoch},
    }


def _details(request: ColdStartInput) -> str:
    plan = request.plan
    head = (
        f"Decision `{plan.decision_id}`: GPUs {plan.gpu_indices} of **{plan.host_id}** under epoch "
        f"{plan.epoch}, {plan.checkpoint.size_bytes / 1e6:.0f} MB of `{plan.checkpoint.checkpoint_id}`."
    )
    return f"{head}\n\n{request.candidates_markdown}" if request.candidates_markdown else head


async def start_cold_start(
    client: Client, request: ColdStartInput, *, eager: bool = False
) -> WorkflowHandle[Any, ColdStartResult]:
    """Start, or join, the workflow of this plan.

    `eager` saves a hop when a control worker runs on the same client.
    Raises: WorkflowAlreadyStartedError if it has ended already.
    """
    return await client.start_workflow(
        naming.COLD_START,
        request,
        result_type=ColdStartResult,
        request_eager_start=eager,
        **cold_start_options(request),
    )


async def start_migration(client: Client, request: MigrationInput) -> WorkflowHandle[Any, MigrationResult]:
    """Start, or join, the workflow of this migration.

    Raises: WorkflowAlreadyStartedError if it has ended already.
    """
    source, host_id = request.source, request.destination_host_id
    predicted_s = request.destination.estimate.total_s if request.destination is not None else 0.0
    return await client.start_workflow(
        naming.LIVE_MIGRATION,
        request,
        id=request.migration_id,
        result_type=MigrationResult,
        task_queue=naming.CONTROL_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        task_timeout=TASK_TIMEOUT,
        static_summary=(f"Move {request.model} from {source.host_id} to {host_id}: {request.reason}"),
        static_details=(
            f"Requests of `{source.instance_id}` (epoch {source.epoch}, {source.endpoint}) go to "
            f"`{request.destination_instance_id}` (epoch {request.destination_epoch}) by "
            f"**{request.transfer}**, handed over when at most {request.delta_tokens} tokens are left. "
            + (
                f"An idle instance on {host_id} is reused."
                if request.destination is None
                else f"A start on {host_id} from {request.destination.estimate.tier} is predicted to take "
                f"{predicted_s:.2f} s."
            )
        ),
        search_attributes=TypedSearchAttributes(
            [
                SearchAttributePair(naming.MODEL, request.model),
                SearchAttributePair(naming.HOST, host_id),
                SearchAttributePair(naming.SOURCE_HOST, source.host_id),
                SearchAttributePair(naming.ESTIMATED_MS, round(predicted_s * 1000)),
            ]
        ),
        memo={"source": source.instance_id, "destination": request.destination_instance_id},
    )


async def start_drain(client: Client, request: DrainInput) -> None:
    """Start, or join, the workflow that empties a host."""
    await client.start_workflow(
        naming.HOST_DRAIN,
        request,
        id=naming.drain_workflow_id(request.host_id),
        task_queue=naming.CONTROL_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        task_timeout=TASK_TIMEOUT,
        static_summary=f"Move everything off {request.host_id}: {request.reason}",
        search_attributes=TypedSearchAttributes([SearchAttributePair(naming.HOST, request.host_id)]),
    )


async def call_off_drain(client: Client, *, host_id: str) -> bool:
    """Stop moving instances off a host; those on their way still go. False: it was not being drained."""
    return await _told(client.get_workflow_handle(naming.drain_workflow_id(host_id)).cancel())


async def cancel_start(client: Client, *, model: str, instance_id: str) -> bool:
    """Ask a start under way to undo itself. False: there is none."""
    handle = client.get_workflow_handle(naming.cold_start_id(model, instance_id))
    return await _told(handle.cancel())


async def stop_instance(client: Client, *, model: str, instance_id: str, request: StopSignal) -> bool:
    """Ask a running instance to drain and end. False: it has no workflow (any more)."""
    handle = client.get_workflow_handle(naming.instance_workflow_id(instance_id))
    deadline_s = time.monotonic() + HANDOVER_S
    has_cancelled = False
    while not await _told(handle.signal(naming.STOP, request)):
        # An instance is ready a little before its start hands it over to its workflow.
        if time.monotonic() > deadline_s or await _has_closed(handle):
            return has_cancelled
        if not has_cancelled:
            # Its bytes may come for long yet: a start that is cancelled undoes itself.
            has_cancelled = await cancel_start(client, model=model, instance_id=instance_id)
        elif await _has_closed(client.get_workflow_handle(naming.cold_start_id(model, instance_id))):
            # Undone; or it was past that, and has handed its instance over by now.
            return await _told(handle.signal(naming.STOP, request)) or True
        await asyncio.sleep(0.05)
    return True


async def change_keep_alive(client: Client, *, instance_id: str, keep_alive_s: float) -> bool:
    """Tell a running instance its model's new keep-alive time. False: it has no workflow (any more)."""
    handle = client.get_workflow_handle(naming.instance_workflow_id(instance_id))
    return await _told(handle.signal(naming.KEEP_ALIVE, KeepAliveSignal(keep_alive_s)))


async def announce_host(client: Client, *, host_id: str, registration: int) -> None:
    """Tell the host's workflow of a registration, starting it if it does not run."""
    await client.start_workflow(
        naming.HOST_LIFECYCLE,
        HostInput(host_id=host_id, registration=registration),
        id=naming.host_workflow_id(host_id),
        task_queue=naming.CONTROL_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        start_signal=naming.HOST_REGISTERED,
        start_signal_args=[HostRegistered(registration=registration)],
        task_timeout=TASK_TIMEOUT,
        static_summary=f"Lease, loss and return of {host_id}",
        search_attributes=TypedSearchAttributes([SearchAttributePair(naming.HOST, host_id)]),
    )


# Any: the handle of a workflow of any type.
async def _has_closed(handle: WorkflowHandle[Any, Any]) -> bool:
    """Whether it ran and has ended; not so for one that was never started."""
    try:
        return (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise


# Any: what cancel and signal return differs, and neither is looked at.
async def _told(call: Any) -> bool:
    try:
        await call
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True

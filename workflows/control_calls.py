"""Calls of control-plane activities (SQL on any control worker), each with its time-outs and summary."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from firstlight.contracts.activities import ControlActivities
from firstlight.contracts.draining import DrainInput, MoveOffReceipt
from firstlight.contracts.freeing import EvictInput, JoinMigrationInput
from firstlight.contracts.hosts import (
    ConsolidateInput,
    FailHostInput,
    FailHostReceipt,
    HostList,
    LeaseWatchInput,
    LeaseWatchReceipt,
    MendInput,
    MendReceipt,
    ReconcileInput,
)
from firstlight.contracts.instances import BeginDrainInput, BeginDrainReceipt, FinishInput
from firstlight.contracts.migrations import FinishMigrationInput, FinishMigrationReceipt, ServeOnInput
from firstlight.contracts.naming import CONTROL_QUEUE
from firstlight.contracts.starts import (
    AbandonInput,
    AbandonReceipt,
    RecordStartInput,
    ReplanInput,
    ReplanReceipt,
)
from workflows import policies

# One transaction; a worker that dies in it costs so much.
SQL = timedelta(seconds=5)


async def replan_start(request: ReplanInput) -> ReplanReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.replan_start,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        # A client waits: a database that is away longer ends the start.
        schedule_to_close_timeout=timedelta(seconds=60),
        retry_policy=policies.UNTIL_DONE,
        summary=f"another host for {request.plan.model}, not {', '.join(request.failed_hosts)}",
    )


async def abandon_start(request: AbandonInput) -> AbandonReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.abandon_start,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.UNTIL_DONE,
        summary=f"release the GPUs of {request.plan.instance_id}: {request.outcome}",
    )


async def record_start(request: RecordStartInput) -> None:
    phases = request.phases
    await workflow.execute_activity_method(
        ControlActivities.record_start,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        schedule_to_close_timeout=timedelta(minutes=30),
        retry_policy=policies.UNTIL_DONE,
        summary=f"predicted {request.plan.estimate.total_s:.2f} s, took {phases.total_s:.2f} s",
    )


async def begin_drain(request: BeginDrainInput) -> BeginDrainReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.begin_drain,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.UNTIL_DONE,
        summary=f"take the route away: {request.reason}",
    )


async def finish_instance(request: FinishInput) -> None:
    await workflow.execute_activity_method(
        ControlActivities.finish_instance,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.UNTIL_DONE,
        summary=f"release the GPUs, {request.outcome}: {request.reason}",
    )


async def serve_on(request: ServeOnInput) -> bool:
    """Whether the source serves again."""
    receipt = await workflow.execute_activity_method(
        ControlActivities.serve_on,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.UNTIL_DONE,
        summary=f"give {request.source.instance_id} its route back",
    )
    return receipt.ok


async def finish_migration(request: FinishMigrationInput) -> FinishMigrationReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.finish_migration,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.UNTIL_DONE,
        summary=f"{request.state}: {request.move.moved} requests, {request.move.tokens} tokens moved",
    )


async def evict_instance(request: EvictInput) -> None:
    await workflow.execute_activity_method(
        ControlActivities.evict_instance,
        request,
        task_queue=CONTROL_QUEUE,
        # Its start may still be handing it over to its workflow.
        start_to_close_timeout=timedelta(seconds=30),
        schedule_to_close_timeout=timedelta(seconds=60),
        retry_policy=policies.UNTIL_DONE,
        summary=f"end {request.model} ({request.instance_id}): {request.reason}",
    )


async def join_migration(request: JoinMigrationInput) -> None:
    await workflow.execute_activity_method(
        ControlActivities.join_migration,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(minutes=15),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.FEW,
        summary=f"wait for {request.migration_id}, which somebody else began",
    )


async def move_off(request: DrainInput) -> MoveOffReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.move_off,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(seconds=30),
        retry_policy=policies.UNTIL_DONE,
        summary=f"begin to move what {request.host_id} still runs",
    )


async def watch_lease(request: LeaseWatchInput) -> LeaseWatchReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.watch_lease,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(seconds=request.at_most_s + 120),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.UNTIL_DONE,
        summary=f"registration {request.registration} of {request.host_id}",
    )


async def fail_host(request: FailHostInput) -> FailHostReceipt:
    return await workflow.execute_activity_method(
        ControlActivities.fail_host,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.UNTIL_DONE,
        summary=f"{request.host_id} is lost: {request.reason}",
    )


async def list_hosts(request: ReconcileInput) -> HostList:
    return await workflow.execute_activity_method(
        ControlActivities.list_hosts,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=SQL,
        retry_policy=policies.FEW,
    )


async def consolidate_fleet() -> list[str]:
    receipt = await workflow.execute_activity_method(
        ControlActivities.consolidate_fleet,
        ConsolidateInput(),
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=policies.ONCE,
        summary="empty a nearly idle host onto busier ones",
    )
    return receipt.done


async def mend_host(request: MendInput) -> MendReceipt:
    report = request.report
    return await workflow.execute_activity_method(
        ControlActivities.mend_host,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(seconds=15),
        retry_policy=policies.FEW,
        summary=f"{report.host_id} holds {len(report.stored)} checkpoints, {len(report.engines)} engines",
    )

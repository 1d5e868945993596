"""Calls of host activities, each on its host's own queue, with its time-outs and summary.

A queue that nobody polls fails the call after its schedule-to-start time-out, which is never retried:
that is how a workflow learns that a host is dead.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.workflow import ActivityCancellationType

from firstlight.contracts.activities import HostActivities
from firstlight.contracts.hosts import HostReport, InventoryInput
from firstlight.contracts.instances import StopInstanceInput, WatchInput, WatchReceipt
from firstlight.contracts.migrations import MoveInput, MoveReceipt
from firstlight.contracts.naming import host_queue
from firstlight.contracts.starts import (
    BringUpInput,
    BringUpReceipt,
    DownloadInput,
    DownloadReceipt,
    Nothing,
)
from workflows import policies


async def download_checkpoint(request: DownloadInput) -> DownloadReceipt:
    checkpoint = request.checkpoint
    return await workflow.execute_activity_method(
        HostActivities.download_checkpoint,
        request,
        task_queue=host_queue(request.host_id),
        schedule_to_start_timeout=policies.HOST_ANSWERS,
        start_to_close_timeout=timedelta(hours=6),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.DOWNLOAD,
        summary=f"fetch {_megabytes(checkpoint.size_bytes)} from {checkpoint.source[:80]}",
    )


async def bring_up(request: BringUpInput) -> BringUpReceipt:
    """Waits for the activity's end even when cancelled, so that what follows finds nobody at work."""
    plan = request.plan
    source = "dram" if plan.estimate.tier == "dram" else f"{plan.estimate.tier}→dram"
    # A download takes as long as its source lets it; heartbeats tell whether anyone still waits for it.
    at_most_s = 6 * 3600.0 if request.fetch else 120 + 5 * plan.estimate.total_s
    return await workflow.execute_activity_method(
        HostActivities.bring_up,
        request,
        task_queue=host_queue(plan.host_id),
        schedule_to_start_timeout=policies.HOST_ANSWERS,
        start_to_close_timeout=timedelta(seconds=at_most_s),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.BRING_UP,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=f"load {_megabytes(plan.checkpoint.size_bytes)} {source} and attach on {plan.host_id}",
    )


def start_watch(host_id: str, request: WatchInput) -> workflow.ActivityHandle[WatchReceipt]:
    until = "it exits" if request.ignore_idle else f"{request.keep_alive_s:g} s idle"
    return workflow.start_activity_method(
        HostActivities.watch_instance,
        request,
        task_queue=host_queue(host_id),
        schedule_to_start_timeout=policies.WATCH_IS_TAKEN_UP,
        start_to_close_timeout=timedelta(seconds=request.at_most_s + 120),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.UNTIL_DONE,
        summary=f"serve at {request.endpoint} until {until}",
    )


async def stop_instance(host_id: str, request: StopInstanceInput) -> Nothing:
    return await workflow.execute_activity_method(
        HostActivities.stop_instance,
        request,
        task_queue=host_queue(host_id),
        schedule_to_start_timeout=policies.HOST_ANSWERS,
        start_to_close_timeout=timedelta(seconds=request.drain_timeout_s + 30),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.FEW,
        summary=f"drain up to {request.drain_timeout_s:g} s and end the engine: {request.reason}",
    )


async def move_requests(request: MoveInput) -> MoveReceipt:
    """Waits for the activity's end even when cancelled: what was handed over by then stays so."""
    source, destination = request.source, request.destination
    return await workflow.execute_activity_method(
        HostActivities.move_requests,
        request,
        task_queue=host_queue(source.host_id),
        schedule_to_start_timeout=policies.HOST_ANSWERS,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=policies.HEARTBEAT,
        retry_policy=policies.FEW,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=f"move requests {source.host_id} → {destination.host_id} by {request.transfer}",
    )


async def report_inventory(host_id: str) -> HostReport:
    return await workflow.execute_activity_method(
        HostActivities.report_inventory,
        InventoryInput(host_id=host_id),
        task_queue=host_queue(host_id),
        schedule_to_start_timeout=policies.HOST_ANSWERS,
        start_to_close_timeout=timedelta(seconds=10),
        retry_policy=policies.ONCE,
        summary=f"what {host_id} holds",
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"

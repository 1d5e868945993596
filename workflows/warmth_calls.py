"""Calls of the activities that decide what stays warm. Both are advice: who gets none goes on as before."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from firstlight.contracts.naming import CONTROL_QUEUE
from firstlight.contracts.warmth import (
    KeepAliveInput,
    KeepAliveReceipt,
    LookAheadInput,
    LookAheadReceipt,
    WarmthActivities,
)
from workflows import policies


async def decide_keep_alive(request: KeepAliveInput) -> KeepAliveReceipt:
    return await workflow.execute_activity_method(
        WarmthActivities.decide_keep_alive,
        request,
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(seconds=5),
        schedule_to_close_timeout=timedelta(seconds=30),
        retry_policy=policies.FEW,
        summary="how long to keep it while idle",
    )


async def look_ahead() -> LookAheadReceipt:
    return await workflow.execute_activity_method(
        WarmthActivities.look_ahead,
        LookAheadInput(),
        task_queue=CONTROL_QUEUE,
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=policies.ONCE,
        summary="bring likely models nearer",
    )

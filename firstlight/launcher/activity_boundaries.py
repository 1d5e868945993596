"""A worker's activities as fault points: `<activity> begins`, and `<activity> ends` before Temporal hears.

The second is the hard one: the work is done, and whoever kills the worker there has it done once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from firstlight import fault_points


class Boundaries(Interceptor):
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Boundary(next)


class _Boundary(ActivityInboundInterceptor):
    # Any: what the activity returns, which is handed on as it is.
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        of = info.workflow_id or ""
        await fault_points.reach(f"{info.activity_type} begins", of=of)
        result = await self.next.execute_activity(input)
        await fault_points.reach(f"{info.activity_type} ends", of=of)
        return result


def boundaries() -> Sequence[Interceptor]:
    """None, unless a test listens at the fault points."""
    return [Boundaries()] if fault_points.IS_ON else []

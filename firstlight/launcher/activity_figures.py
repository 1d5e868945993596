"""How long a worker's activities take and how they end, for Prometheus."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from firstlight.domain.errors import FirstlightError

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class ActivityFigures(Interceptor):
    """`outcome` is ok, cancelled, the stable code of an error of ours, or failed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.took_s = Histogram(
            "firstlight_activity_seconds",
            "One try of an activity.",
            ("activity", "outcome"),
            buckets=_BUCKETS,
            registry=registry,
        )

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Timed(next, self.took_s)


class _Timed(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, took_s: Histogram) -> None:
        super().__init__(next)
        self._took_s = took_s

    # Any: what the activity returns, which is handed on as it is.
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        began_s = time.monotonic()
        outcome = "failed"
        try:
            result = await self.next.execute_activity(input)
            outcome = "ok"
            return result
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except FirstlightError as error:
            outcome = error.code
            raise
        except ApplicationError as error:
            # Its type is the code of an error of ours, where it was one (activities/errors.py).
            outcome = error.type or "failed"
            raise
        finally:
            name = activity.info().activity_type
            self._took_s.labels(name, outcome).observe(time.monotonic() - began_s)

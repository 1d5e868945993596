"""What the API alone knows of a start: the first token a waiting request got. Written off the path.

Also turns starts into figures, once each in all replicas together, when their instance becomes ready.
"""

from __future__ import annotations

import asyncio
import time

from api.background import Background
from api.metrics import Metrics
from api.routing.lane import Slot
from api.routing.notices import InstanceNotice
from api.routing.route_table import RouteTable
from firstlight.database.connection import Database
from firstlight.database.records import PlannedStart
from firstlight.database.starts_repository import list_starts, record_first_token
from firstlight.domain.errors import UnknownInstance
from firstlight.domain.lifecycle import InstanceState

# The workflow records a start just after it has published the route.
RECORDED_WITHIN_S = 10.0
LOOK_EVERY_S = 0.5
STARTS_AT_MOST = 10_000
_PHASES = ("queue", "download", "load", "free", "attach", "control")


class StartLedger:
    def __init__(
        self, *, database: Database, table: RouteTable, metrics: Metrics, background: Background
    ) -> None:
        self._database = database
        self._table = table
        self._metrics = metrics
        self._background = background
        # Starts begun here that have not ended, oldest first.
        self._own: dict[str, None] = {}

    def first_token(self, slot: Slot, dispatched_s: float, prefill_s: float, arrived_s: float) -> None:
        """Hears of the first token of every stream; keeps that of a start somebody waited for."""
        # Not `slot.waited_s`: on a first start the request waits for the tokenizer, not for a place.
        if not self._table.lane(slot.route.model).prove(slot.route, arrived_s=arrived_s):
            return
        now_s = time.monotonic()
        self._background.start(
            self._record(
                slot.route.instance_id,
                first_token_s=now_s - dispatched_s,
                prefill_s=prefill_s,
                request_to_first_token_s=now_s - arrived_s,
            ),
            name=f"first token of {slot.route.instance_id}",
        )

    def planned(self, model: str, planned: PlannedStart) -> None:
        if planned.plan is not None:
            # Every replica hears of every instance: the one that began a start counts it.
            self._own[planned.plan.instance_id] = None
            while len(self._own) > STARTS_AT_MOST:
                del self._own[next(iter(self._own))]
        self._metrics.decisions.labels(type(planned.decision).__name__.lower()).inc()

    def changed(self, notice: InstanceNotice) -> None:
        if notice.state is InstanceState.STARTING or notice.instance_id not in self._own:
            return
        del self._own[notice.instance_id]
        if notice.state is InstanceState.FAILED:
            self._metrics.start_failures.labels(notice.failure_code or "unknown").inc()
        elif notice.state is InstanceState.READY:
            self._background.start(self._measure(notice), name=f"figures of {notice.instance_id}")

    async def _record(
        self, instance_id: str, *, first_token_s: float, prefill_s: float, request_to_first_token_s: float
    ) -> None:
        async with self._database.transaction() as session:
            await record_first_token(
                session,
                instance_id=instance_id,
                first_token_s=first_token_s,
                prefill_s=prefill_s,
                request_to_first_token_s=request_to_first_token_s,
            )

    async def _measure(self, notice: InstanceNotice) -> None:
        until_s = time.monotonic() + RECORDED_WITHIN_S
        while time.monotonic() < until_s:
            await asyncio.sleep(LOOK_EVERY_S)
            async with self._database.session() as session:
                starts = await list_starts(session, model=notice.model, limit=5)
            start = next((row for row in starts if row.instance_id == notice.instance_id), None)
            if start is None:
                raise UnknownInstance(f"start of {notice.instance_id} is not in the books")
            if start.actual is None:
                continue
            actual = start.actual
            self._metrics.start_s.labels(start.tier).observe(actual.total_s)
            error_s = abs(actual.total_s - start.predicted.total_s)
            self._metrics.estimate_error_s.labels(start.tier).observe(error_s)
            if actual.total_s > 0:
                self._metrics.estimate_error_ratio.labels(start.tier).observe(error_s / actual.total_s)
            for phase in _PHASES:
                self._metrics.start_phase_s.labels(phase).observe(getattr(actual, f"{phase}_s"))
            return

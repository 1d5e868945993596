"""FleetReconciler: on a schedule, compares Postgres with what every host reports, and mends drift."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError

from firstlight.contracts.failures import error_of
from firstlight.contracts.hosts import ReconcileInput, ReconcileResult
from firstlight.contracts.naming import FLEET_RECONCILER
from workflows import control_calls, warmth_calls
from workflows.mending import mend_host
from workflows.story import Story

# Hosts looked at side by side: bounds the load on Postgres and the size of one workflow task.
HOSTS_AT_ONCE = 50
# Histories without it were made before anything was brought nearer ahead of need.
LOOKS_AHEAD = "look-ahead"


@workflow.defn(name=FLEET_RECONCILER)
class FleetReconciler:
    def __init__(self) -> None:
        self._story = Story()

    @workflow.run
    async def run(self, request: ReconcileInput) -> ReconcileResult:
        hosts, consolidates = request.remaining, request.consolidates
        if hosts is None:
            listed = await control_calls.list_hosts(request)
            hosts, consolidates = listed.host_ids, listed.consolidates
        unreachable: list[str] = []
        mended: list[str] = []
        for first in range(0, len(hosts), HOSTS_AT_ONCE):
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(
                    ReconcileInput(
                        stale_start_s=request.stale_start_s,
                        remaining=hosts[first:],
                        consolidates=consolidates,
                    )
                )
            batch = hosts[first : first + HOSTS_AT_ONCE]
            found = await asyncio.gather(*(mend_host(h, stale_start_s=request.stale_start_s) for h in batch))
            for host_id, sentences in zip(batch, found, strict=True):
                if sentences is None:
                    unreachable.append(host_id)
                mended.extend(sentences or [])
        if workflow.patched(LOOKS_AHEAD):
            await self._look_ahead()
        if consolidates:
            await self._consolidate()
        self._tell(len(hosts), unreachable, mended)
        return ReconcileResult(hosts=len(hosts), unreachable=unreachable, mended=mended)

    async def _consolidate(self) -> None:
        try:
            moves = await control_calls.consolidate_fleet()
        except ActivityError as failure:
            if workflow.cancellation_reason() is not None:
                raise
            moves = [f"no host was emptied: {error_of(failure).message}"]
        for sentence in moves:
            self._story.tell(sentence)

    async def _look_ahead(self) -> None:
        """After mending: what is where is known best now."""
        try:
            receipt = await warmth_calls.look_ahead()
        except ActivityError as failure:
            if workflow.cancellation_reason() is not None:
                raise
            self._story.tell(f"nothing was brought nearer: {error_of(failure).message}")
            return
        for sentence in receipt.done:
            self._story.tell(sentence)

    def _tell(self, hosts: int, unreachable: list[str], mended: list[str]) -> None:
        for host_id in unreachable:
            self._story.tell(f"{host_id} did not answer")
        for sentence in mended:
            self._story.tell(sentence)
        self._story.tell(f"{hosts} hosts looked at, {len(mended)} things mended")
        self._story.end("mended" if mended else "unreachable" if unreachable else "clean")

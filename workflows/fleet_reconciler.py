"""FleetReconciler: on a schedule, compares Postgres with what every host reports, and mends drift."""

from __future__ import annotations

import asyncio

from temporalio import workflow

from firstlight.contracts.hosts import ReconcileInput, ReconcileResult
from firstlight.contracts.naming import FLEET_RECONCILER
from workflows import control_calls
from workflows.mending import mend_host
from workflows.story import Story

# Hosts looked at side by side: bounds the load on Postgres and the size of one workflow task.
HOSTS_AT_ONCE = 50


@workflow.defn(name=FLEET_RECONCILER)
class FleetReconciler:
    def __init__(self) -> None:
        self._story = Story()

    @workflow.run
    async def run(self, request: ReconcileInput) -> ReconcileResult:
        hosts = request.remaining
        if hosts is None:
            hosts = (await control_calls.list_hosts(request)).host_ids
        unreachable: list[str] = []
        mended: list[str] = []
        for first in range(0, len(hosts), HOSTS_AT_ONCE):
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(
                    ReconcileInput(stale_start_s=request.stale_start_s, remaining=hosts[first:])
                )
            batch = hosts[first : first + HOSTS_AT_ONCE]
            found = await asyncio.gather(*(mend_host(h, stale_start_s=request.stale_start_s) for h in batch))
            for host_id, sentences in zip(batch, found, strict=True):
                if sentences is None:
                    unreachable.append(host_id)
                mended.extend(sentences or [])
        self._tell(len(hosts), unreachable, mended)
        return ReconcileResult(hosts=len(hosts), unreachable=unreachable, mended=mended)

    def _tell(self, hosts: int, unreachable: list[str], mended: list[str]) -> None:
        for host_id in unreachable:
            self._story.tell(f"{host_id} did not answer")
        for sentence in mended:
            self._story.tell(sentence)
        self._story.tell(f"{hosts} hosts looked at, {len(mended)} things mended")
        self._story.end("mended" if mended else "unreachable" if unreachable else "clean")

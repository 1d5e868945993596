"""One host's drift: ask what it holds, make Postgres agree, end engines that nobody owns."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from firstlight.contracts.failures import error_of
from firstlight.contracts.hosts import EngineToStop, MendInput
from firstlight.contracts.instances import StopInstanceInput
from workflows import control_calls, host_calls


async def mend_host(host_id: str, *, stale_start_s: float) -> list[str] | None:
    """One sentence per thing put right; None if the host or the database did not answer."""
    try:
        report = await host_calls.report_inventory(host_id)
        receipt = await control_calls.mend_host(MendInput(report=report, stale_start_s=stale_start_s))
    except ActivityError as failure:
        if workflow.cancellation_reason() is not None:
            raise
        workflow.logger.warning("%s was not mended: %s", host_id, error_of(failure).message)
        return None
    ended = [sentence for orphan in receipt.orphans if (sentence := await _end(host_id, orphan))]
    return [*receipt.mended, *ended]


async def _end(host_id: str, orphan: EngineToStop) -> str | None:
    request = StopInstanceInput(orphan.instance_id, orphan.epoch, 0.0, "no live instance owns it")
    try:
        await host_calls.stop_instance(host_id, request)
    except ActivityError as failure:
        workflow.logger.warning("orphan %s still runs: %s", orphan.instance_id, error_of(failure).message)
        return None
    return f"ended engine {orphan.instance_id} (epoch {orphan.epoch}) on {host_id}: nobody owned it"

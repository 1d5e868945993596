"""Ending a workflow, asking it to undo itself, and telling it something; each is in the audit log before."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from firstlight.contracts import naming
from firstlight.contracts.hosts import HostRegistered
from firstlight.contracts.instances import KeepAliveSignal, StopSignal
from firstlight.database.connection import Database
from firstlight.domain.errors import InvalidInput
from firstlight.recovery.found import FoundWorkflow, find
from firstlight.recovery.report import Report, Verdict
from firstlight.recovery.written_down import Lines, written_down

# Another name would be kept in a history for ever and heard by nobody. A test compares with the workflows.
SIGNALS: Mapping[str, Mapping[str, type]] = {
    naming.INSTANCE_LIFECYCLE: {naming.STOP: StopSignal, naming.KEEP_ALIVE: KeepAliveSignal},
    naming.HOST_LIFECYCLE: {naming.HOST_REGISTERED: HostRegistered},
}
# What nobody undoes when these are ended by force, until a reconciliation finds it.
LEFT_OPEN: Mapping[str, str] = {
    naming.COLD_START: "its GPUs stay reserved until the reconciler finds that nobody carries it out",
    naming.LIVE_MIGRATION: "its source takes no new requests until the reconciler gives it its route back",
    naming.INSTANCE_LIFECYCLE: "nobody ends the instance when it is idle; replay it --from-start",
    naming.HOST_LIFECYCLE: "nobody notices the host's loss; replay it --from-failure, or restart its agent",
    naming.HOST_DRAIN: "the host keeps what it runs and takes no more; replay it, or undrain the host",
    naming.FLEET_RECONCILER: "the next one of its schedule does all of it again",
}


async def terminate(
    client: Client,
    database: Database | None,
    workflow_id: str,
    *,
    reason: str,
    actor: str,
    is_rehearsal: bool = False,
) -> Report:
    """End the latest run by force: nothing is undone. Raises: NotFound, DatabaseUnavailable."""
    found = await find(client, workflow_id)
    if not found.is_running:
        return _ended_already(found, "terminate")
    left = LEFT_OPEN.get(found.workflow_type, "nothing of it is undone")
    if not is_rehearsal:
        handle = client.get_workflow_handle(found.workflow_id, run_id=found.run_id)
        async with _written_down(database, actor, "terminate", found, reason) as lines:
            if not await _told(handle.terminate(reason=f"{reason} ({actor})"), lines):
                return _ended_already(found, "terminate")
    return _done(found, "terminate", f"ended by force; {left}", is_rehearsal=is_rehearsal)


async def cancel(
    client: Client, database: Database | None, workflow_id: str, *, actor: str, is_rehearsal: bool = False
) -> Report:
    """Ask the latest run to undo itself and end. Raises: NotFound, DatabaseUnavailable."""
    found = await find(client, workflow_id)
    if not found.is_running:
        return _ended_already(found, "cancel")
    if not is_rehearsal:
        handle = client.get_workflow_handle(found.workflow_id, run_id=found.run_id)
        async with _written_down(database, actor, "cancel", found, "") as lines:
            if not await _told(handle.cancel(), lines):
                return _ended_already(found, "cancel")
    return _done(found, "cancel", "asked to undo itself and end", is_rehearsal=is_rehearsal)


async def signal(
    client: Client,
    database: Database | None,
    workflow_id: str,
    *,
    name: str,
    fields: Mapping[str, Any],
    actor: str,
) -> Report:
    """Tell the latest run something it knows to hear.

    Raises: NotFound; DatabaseUnavailable; InvalidInput for anything else.
    """
    found = await find(client, workflow_id)
    message = message_of(found.workflow_type, name, fields)
    if not found.is_running:
        return _ended_already(found, "signal")
    handle = client.get_workflow_handle(found.workflow_id, run_id=found.run_id)
    async with _written_down(database, actor, f"signal {name}", found, str(message)) as lines:
        if not await _told(handle.signal(name, message), lines):
            return _ended_already(found, "signal")
    return _done(found, "signal", f"was told {message}", is_rehearsal=False)


# Any: fields of a JSON object, checked against those of the message.
def message_of(workflow_type: str, name: str, fields: Mapping[str, Any]) -> object:
    """Raises: InvalidInput."""
    known = SIGNALS.get(workflow_type, {})
    if name not in known:
        heard = ", ".join(sorted(known)) or "no signal"
        raise InvalidInput(f"{workflow_type} hears {heard}, not {name!r}")
    try:
        return known[name](**fields)
    except TypeError as error:
        wanted = ", ".join(field.name for field in dataclasses.fields(known[name]))
        raise InvalidInput(f"signal {name} takes {wanted}: {error}") from error


async def _told(call: Awaitable[object], lines: Lines) -> bool:
    """False: it has ended in the meantime."""
    try:
        await call
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        await lines.add({"failed": "it had ended"})
        return False
    return True


def _ended_already(found: FoundWorkflow, how: str) -> Report:
    return Report(
        workflow_id=found.workflow_id,
        how=how,
        verdict=Verdict.NOTHING,
        sentence=f"it has ended ({found.status}); nothing was done",
    )


def _done(found: FoundWorkflow, how: str, sentence: str, *, is_rehearsal: bool) -> Report:
    verdict = Verdict.WOULD if is_rehearsal else Verdict.DONE
    return Report(workflow_id=found.workflow_id, how=how, verdict=verdict, sentence=sentence)


def _written_down(
    database: Database | None, actor: str, act: str, found: FoundWorkflow, detail: str
) -> AbstractAsyncContextManager[Lines]:
    return written_down(
        database,
        actor=actor,
        act=f"workflow {act}",
        subject=f"workflow/{found.workflow_id}",
        detail={"run_id": found.run_id, "detail": detail},
    )

"""One workflow replayed in the way that was asked for, or refused with the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from temporalio.client import Client

from firstlight.contracts.naming import COLD_START, LIVE_MIGRATION
from firstlight.database.connection import Database
from firstlight.domain.errors import Conflict, FirstlightError
from firstlight.recovery import cold_starts, migrations, others
from firstlight.recovery.found import FoundWorkflow, find
from firstlight.recovery.recorded import Recorded
from firstlight.recovery.report import How, Report, Verdict, refusal
from firstlight.recovery.stage import Stage, needed
from firstlight.recovery.verifying import verify
from firstlight.recovery.written_down import written_down

Way = Callable[[Stage], Awaitable[Report]]
_WAYS: Mapping[tuple[str, How], Way] = {
    (COLD_START, How.FROM_FAILURE): cold_starts.from_failure,
    (COLD_START, How.FROM_START): cold_starts.from_start,
    (LIVE_MIGRATION, How.FROM_FAILURE): migrations.from_failure,
    (LIVE_MIGRATION, How.FROM_START): migrations.from_start,
}
_OTHER_WAYS: Mapping[How, Way] = {
    How.FROM_FAILURE: others.from_failure,
    How.FROM_START: others.from_start,
}


async def replay(
    client: Client,
    database: Database | None,
    workflow_id: str,
    *,
    how: How,
    actor: str,
    run_id: str | None = None,
    is_rehearsal: bool = False,
) -> Report:
    """Never raises for what is wrong with the workflow: that is the report.

    Raises: NotFound for a workflow there is not; RPCError, DatabaseUnavailable.
    """
    found = await find(client, workflow_id, run_id)
    if how is How.VERIFY:
        return await verify(client, found)
    latest = found if run_id is None else await find(client, workflow_id)
    if latest.is_running:
        return _nothing(latest, how, f"it runs (run {latest.run_id}): nothing is to be replayed")
    if latest.status == "completed":
        return _nothing(latest, how, f"it has completed (run {latest.run_id})")
    try:
        _check_may_run(latest)
        stage = Stage(
            client=client,
            database=needed(database),
            found=latest,
            recorded=await Recorded.read(client, latest.workflow_id, latest.run_id),
            how=how,
            actor=actor,
            is_rehearsal=is_rehearsal,
        )
        way = _WAYS.get((latest.workflow_type, how)) or _OTHER_WAYS[how]
        return await way(stage) if is_rehearsal else await _written_down(stage, way)
    except FirstlightError as error:
        return refusal(workflow_id, how, error)


def _check_may_run(found: FoundWorkflow) -> None:
    if found.status == "canceled":
        raise Conflict("somebody cancelled it, and it has undone itself: ask for what you want anew")


def _nothing(found: FoundWorkflow, how: How, sentence: str) -> Report:
    return Report(workflow_id=found.workflow_id, how=how, verdict=Verdict.NOTHING, sentence=sentence)


async def _written_down(stage: Stage, way: Way) -> Report:
    """Before it is done by whom it was asked for, and afterwards what it reserved."""
    async with written_down(
        stage.database,
        actor=stage.actor,
        act=f"workflow replay {stage.how}",
        subject=f"workflow/{stage.found.workflow_id}",
        detail={"run_id": stage.found.run_id},
    ) as lines:
        report = await way(stage)
    await lines.add(
        {
            "old_run_id": stage.found.run_id,
            "new_run_id": report.new_run_id,
            "new_workflow_id": report.new_workflow_id,
            "sentence": report.sentence,
            "reserves": str(report.reserves or ""),
        },
        act=f"workflow replayed {stage.how}",
    )
    return report

"""Replays of LiveMigration: the source must still serve under the epoch the migration knows."""

from __future__ import annotations

import time

from temporalio.service import RPCError

from firstlight.contracts.migrations import FinishMigrationInput, MigrationInput, ResumedMigration
from firstlight.contracts.naming import LIVE_MIGRATION
from firstlight.contracts.starting import start_migration
from firstlight.contracts.starts import AbandonInput, StartPlan
from firstlight.database.instances_repository import get_instance
from firstlight.database.migration_resuming import resume_migration
from firstlight.database.migrations_repository import finish_migration, plan_migration
from firstlight.database.starts_repository import abandon_start
from firstlight.domain.errors import Conflict, FirstlightError, StaleEpoch
from firstlight.recovery.report import Report, reservation_for, reservation_of
from firstlight.recovery.reset_point import point_where_it_gave_up
from firstlight.recovery.stage import Stage
from firstlight.rpc.channels import Channels
from firstlight.rpc.idle_engines import IdleEngines


async def from_failure(stage: Stage) -> Report:
    """Raises: FirstlightError, with nothing changed."""
    if stage.was_cut_off:
        raise Conflict(
            "this migration was cut off and could not give its source its route back; the reconciler does: "
            "replay it --from-start"
        )
    request: MigrationInput = await stage.recorded.input(MigrationInput)
    point = point_where_it_gave_up(stage.recorded, LIVE_MIGRATION)
    resumed = await resume_migration(
        stage.database,
        migration_id=request.migration_id,
        source=request.source,
        now_unix_s=time.time(),
        is_rehearsal=stage.is_rehearsal,
    )
    target = resumed.reused or resumed.destination
    assert target is not None, "a migration goes somewhere"
    sentence = (
        f"go on where it gave up (event {point.event_id}), attempt {resumed.attempt}: "
        f"{request.source.instance_id} to {target.instance_id} on {target.host_id}"
    )
    reserves = reservation_for(resumed, is_rehearsal=stage.is_rehearsal)
    if stage.is_rehearsal:
        return stage.tell(sentence, reserves=reserves)
    try:
        run_id = await stage.reset(point)
    except FirstlightError as error:
        await _close(stage, request.migration_id, resumed, error.message)
        raise
    return stage.tell(sentence, reserves=reserves, new_run_id=run_id)


async def from_start(stage: Stage) -> Report:
    """A migration of its own, with the next number: the first one's record stays. Raises: FirstlightError."""
    request: MigrationInput = await stage.recorded.input(MigrationInput)
    await _check_source(stage, request)
    sentence = f"move {request.source.instance_id} to {request.destination_host_id} by a new migration"
    if stage.is_rehearsal:
        return stage.tell(sentence)
    async with Channels() as channels:
        planned = await plan_migration(
            stage.database,
            instance_id=request.source.instance_id,
            to_host=request.destination_host_id,
            reason=request.reason,
            transfer=request.transfer,
            now_unix_s=time.time(),
            find_idle=IdleEngines(channels).find,
        )
    try:
        handle = await start_migration(stage.client, planned)
    except RPCError as error:
        resumed = ResumedMigration(1, planned.destination, planned.reused)
        await _close(stage, planned.migration_id, resumed, error.message)
        raise Conflict(f"Temporal did not take the migration: {error.message}") from error
    return stage.tell(
        sentence,
        reserves=reservation_of(planned.destination, is_rehearsal=False) if planned.destination else None,
        new_run_id=handle.result_run_id or "",
        new_workflow_id=planned.migration_id,
    )


async def _check_source(stage: Stage, request: MigrationInput) -> None:
    source = request.source
    async with stage.database.session() as session:
        instance = await get_instance(session, source.instance_id)
    if instance.epoch != source.epoch:
        raise StaleEpoch(
            f"instance {source.instance_id} runs under epoch {instance.epoch}; this migration knows "
            f"{source.epoch}",
            instance_id=source.instance_id,
            epoch=source.epoch,
        )
    if instance.state != "ready":
        raise Conflict(f"instance {source.instance_id} is {instance.state}; only one that serves can move")


async def _close(stage: Stage, migration_id: str, granted: ResumedMigration, failure: str) -> None:
    destination: StartPlan | None = granted.destination
    async with stage.database.transaction() as session:
        if destination is not None:
            await abandon_start(
                session, AbandonInput(plan=destination, failure_code="conflict", failure=failure)
            )
        ending = FinishMigrationInput(migration_id, "failed", failure=failure, attempt=granted.attempt)
        await finish_migration(session, ending)

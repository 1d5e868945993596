"""Moving instances between hosts on an operator's word: planned in Postgres, carried out by workflows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from firstlight.contracts.draining import DrainInput
from firstlight.contracts.migrations import FinishMigrationInput
from firstlight.contracts.starting import call_off_drain, start_drain, start_migration
from firstlight.contracts.starts import AbandonInput
from firstlight.database.host_draining import instances_of, set_draining
from firstlight.database.migrations_repository import finish_migration, plan_migration
from firstlight.database.starts_repository import abandon_start
from firstlight.domain.errors import Overloaded
from firstlight.rpc.idle_engines import IdleEngines

if TYPE_CHECKING:
    from api.services import Services
    from firstlight.contracts.migrations import MigrationInput


class MigrateRequest(BaseModel):
    """`to`: a host's id; without it the host where the instance would be ready soonest."""

    model_config = ConfigDict(strict=True, extra="forbid")

    to: str | None = None


class MigrationBegun(BaseModel):
    migration_id: str
    model: str
    source_instance_id: str
    source_host_id: str
    destination_instance_id: str
    destination_host_id: str
    estimated_s: float


class ObservationRow(BaseModel):
    """One request that moved: all its tokens, and seconds from its first round to its hand-over."""

    tokens: int
    seconds: float


class MigrationRow(BaseModel):
    migration_id: str
    model: str
    source_instance_id: str
    source_host_id: str
    destination_instance_id: str
    destination_host_id: str
    state: str
    reason: str
    transfer: str
    requests_moved: int
    rounds: int
    tokens_moved: int
    bytes_moved: int
    start_s: float
    move_s: float
    pause_s: float
    predicted_start_s: float | None
    predicted_move_s: float | None
    observations: list[ObservationRow]
    started_at_unix_s: float
    ended_at_unix_s: float | None
    failure: str | None


class MigrationList(BaseModel):
    migrations: list[MigrationRow]


class DrainAnswer(BaseModel):
    host_id: str
    state: str
    live_instances: int


async def migrate(services: Services, instance_id: str, wish: MigrateRequest) -> MigrationBegun:
    """Raises: UnknownInstance, UnknownHost, Conflict, NoCapacity; Overloaded while Temporal is away."""
    planned = await plan_migration(
        services.database,
        instance_id=instance_id,
        to_host=wish.to,
        find_idle=IdleEngines(services.channels).find,
        reason="an operator asked",
        now_unix_s=time.time(),
    )
    try:
        await start_migration(services.temporal, planned)
    except WorkflowAlreadyStartedError:
        # An earlier try whose answer was lost.
        pass
    except (RPCError, OSError, RuntimeError) as error:
        await _give_up(services, planned, str(error))
        raise Overloaded(f"Temporal does not answer: {error}", retry_after_s=5.0) from error
    return MigrationBegun(
        migration_id=planned.migration_id,
        model=planned.model,
        source_instance_id=planned.source.instance_id,
        source_host_id=planned.source.host_id,
        destination_instance_id=planned.destination_instance_id,
        destination_host_id=planned.destination_host_id,
        estimated_s=planned.destination.estimate.total_s if planned.destination is not None else 0.0,
    )


async def _give_up(services: Services, planned: MigrationInput, failure: str) -> None:
    ending = FinishMigrationInput(planned.migration_id, "failed", failure=failure)
    async with services.database.transaction() as session:
        if planned.destination is not None:
            abandoned = AbandonInput(plan=planned.destination, failure_code="start_failed", failure=failure)
            await abandon_start(session, abandoned)
        await finish_migration(session, ending)


async def drain(services: Services, host_id: str) -> DrainAnswer:
    """Raises: UnknownHost, Conflict; Overloaded when Temporal does not answer, to be repeated."""
    async with services.database.transaction() as session:
        await set_draining(session, host_id, is_draining=True)
        live = await instances_of(session, host_id)
    try:
        await start_drain(services.temporal, DrainInput(host_id))
    except (RPCError, OSError, RuntimeError) as error:
        raise Overloaded(
            f"{host_id} takes nothing new, but Temporal is away and nothing moves; repeat the request",
            retry_after_s=5.0,
        ) from error
    return DrainAnswer(host_id=host_id, state="draining", live_instances=len(live))


async def undrain(services: Services, host_id: str) -> DrainAnswer:
    """Raises: UnknownHost, Conflict; Overloaded when Temporal does not answer, to be repeated."""
    try:
        await call_off_drain(services.temporal, host_id=host_id)
    except (RPCError, OSError, RuntimeError) as error:
        raise Overloaded("Temporal does not answer; repeat the request", retry_after_s=5.0) from error
    async with services.database.transaction() as session:
        await set_draining(session, host_id, is_draining=False)
        live = await instances_of(session, host_id)
    return DrainAnswer(host_id=host_id, state="ready", live_instances=len(live))

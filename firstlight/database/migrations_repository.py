"""Live migrations: a destination is reserved and the row written in one transaction; later it is closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from firstlight.contracts.migrations import (
    FinishMigrationInput,
    MigrationInput,
    MovingInstance,
    ResumedMigration,
    ServeOnInput,
)
from firstlight.database.base import JsonDocument
from firstlight.database.connection import Database
from firstlight.database.decision_json import estimate_from_json
from firstlight.database.fleet_view import FleetView, read_fleet
from firstlight.database.instance_closing import LONGEST_FAILURE, lock_instance
from firstlight.database.learned_tables import MoveObservationRow
from firstlight.database.locks import lock_decision
from firstlight.database.migration_grants import granted_attempt
from firstlight.database.migration_writing import add_migration, next_migration_id
from firstlight.database.move_learning import learn_move
from firstlight.database.plan_writing import Asked, GpuTaken, write_place
from firstlight.database.records import MigrationRecord
from firstlight.database.tables import DecisionRow, HostRow, InstanceRow, MigrationRow
from firstlight.domain.errors import Conflict, NoCapacity, UnknownHost
from firstlight.domain.fleet import StartRequest
from firstlight.domain.lifecycle import HostState, InstanceState, ModelState
from firstlight.domain.migration import MoveObservation
from firstlight.domain.names import HostId
from firstlight.domain.scheduler import Migrate, Place, decide

ATTEMPTS = 5
# Of instances that serve, one that has nothing to do; None if all are busy or do not answer.
FindIdle = Callable[[Sequence[MovingInstance]], Awaitable[MovingInstance | None]]


async def _no_idle(others: Sequence[MovingInstance]) -> MovingInstance | None:
    return None


async def plan_migration(
    database: Database,
    *,
    instance_id: str,
    to_host: str | None,
    reason: str,
    now_unix_s: float,
    transfer: str | None = None,
    find_idle: FindIdle = _no_idle,
) -> MigrationInput:
    """Reserve a place for the instance on `to_host`, or on the host where it would be ready soonest.

    An instance of the same model that serves there already and of which `find_idle` says that it has nothing
    to do is taken instead. One migration of an instance at a time. `transfer` is the model's own policy
    unless another is asked for.

    Raises: UnknownInstance, UnknownHost; Conflict when it does not serve or moves already; NoCapacity when no
    host has room.
    """
    async with database.session() as session:
        model = (await lock_serving(session, instance_id, is_locked=False)).model
        others = await _others(session, instance_id, model, to_host)
    idle = await find_idle(others)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with database.transaction() as session:
                await lock_decision(session, model, is_last_attempt=attempt == ATTEMPTS)
                source = await lock_serving(session, instance_id, is_locked=True)
                view = await read_fleet(session, model=model, now_unix_s=now_unix_s)
                how = transfer or view.wanted.transfer
                if idle is not None and await _still_serves(session, idle):
                    return await _reuse(session, source, idle, reason=reason, transfer=how)
                decision = choose_destination(view, source, to_host)
                return await _write(session, view, source, decision, reason=reason, transfer=how)
        except GpuTaken:
            continue
    raise AssertionError("the last attempt shuts out all other decisions")


async def lock_serving(session: AsyncSession, instance_id: str, *, is_locked: bool = True) -> InstanceRow:
    """An instance that may move. Raises: UnknownInstance; Conflict when it does not serve or moves."""
    if is_locked:
        row: InstanceRow | None = await lock_instance(session, instance_id)
    else:
        row = await session.get(InstanceRow, instance_id)
    # `lock_instance` names an unknown one; the look before it lets the lock find out.
    if row is None:
        row = await lock_instance(session, instance_id)
    if row.state != InstanceState.READY or row.endpoint is None:
        raise Conflict(f"instance {instance_id} is {row.state}; only one that serves can move")
    running = await session.scalar(
        select(MigrationRow.migration_id).where(
            MigrationRow.source_instance_id == instance_id, MigrationRow.state == "running"
        )
    )
    if running is not None:
        raise Conflict(f"instance {instance_id} moves already: {running}", migration_id=running)
    return row


async def _others(
    session: AsyncSession, instance_id: str, model: str, to_host: str | None
) -> list[MovingInstance]:
    """Instances of the model that serve on other hosts, and neither come nor go."""
    here = select(InstanceRow.host_id).where(InstanceRow.instance_id == instance_id).scalar_subquery()
    moving = select(MigrationRow.source_instance_id).where(MigrationRow.state == "running")
    query = select(InstanceRow).where(
        InstanceRow.model == model,
        InstanceRow.state == InstanceState.READY,
        InstanceRow.host_id != here,
        InstanceRow.instance_id.not_in(moving),
    )
    if to_host is not None:
        query = query.where(InstanceRow.host_id == to_host)
    rows = await session.scalars(query.order_by(InstanceRow.instance_id))
    return [
        MovingInstance(row.instance_id, row.epoch, row.host_id, row.endpoint)
        for row in rows
        if row.endpoint is not None
    ]


async def _still_serves(session: AsyncSession, idle: MovingInstance) -> bool:
    row = await session.get(InstanceRow, idle.instance_id)
    host = await session.get(HostRow, idle.host_id)
    is_open = host is not None and host.state == HostState.READY
    return row is not None and row.state == InstanceState.READY and row.epoch == idle.epoch and is_open


async def _reuse(
    session: AsyncSession, source: InstanceRow, idle: MovingInstance, *, reason: str, transfer: str
) -> MigrationInput:
    migration_id = await add_migration(session, source, idle.instance_id, reason=reason, transfer=transfer)
    return MigrationInput(
        migration_id=migration_id,
        model=source.model,
        source=_moving(source),
        destination=None,
        reason=reason,
        transfer=transfer,
        reused=idle,
    )


def choose_destination(view: FleetView, source: InstanceRow, to_host: str | None) -> Place:
    """Where the source's instance goes. Raises: UnknownHost, Conflict, NoCapacity."""
    if view.wanted.state is ModelState.DELETING:
        raise Conflict(f"model {source.model!r} is being deleted", model=source.model)
    hosts = {host.host_id for host in view.snapshot.hosts}
    excluded = {HostId(source.host_id)}
    if to_host is not None:
        if to_host not in hosts:
            raise UnknownHost(f"there is no host {to_host!r}", host_id=to_host)
        if to_host == source.host_id:
            raise Conflict(f"instance {source.instance_id} runs on {to_host} already")
        excluded |= hosts - {HostId(to_host)}
    request = StartRequest(
        # It takes the place of one that runs: the model's maximum has had its say.
        replace(view.wanted.model, max_instances=None),
        excluded_hosts=frozenset(excluded),
        may_wait=False,
        may_free=False,
    )
    decision = decide(request, view.snapshot)
    assert not isinstance(decision, Migrate), "nothing may be freed for it"
    if not isinstance(decision, Place):
        raise NoCapacity(
            f"instance {source.instance_id} has nowhere to go: {decision.reason}", retry_after_s=5.0
        )
    return decision


async def _write(
    session: AsyncSession,
    view: FleetView,
    source: InstanceRow,
    decision: Place,
    *,
    reason: str,
    transfer: str,
) -> MigrationInput:
    migration_id = await next_migration_id(session, source)
    asked = Asked(request_id=migration_id, model=source.model, deadline_s=None)
    destination = await write_place(
        session, asked=asked, view=view, decision=decision, reason=f"migration: {reason}"
    )
    await add_migration(session, source, destination.instance_id, reason=reason, transfer=transfer)
    return MigrationInput(
        migration_id=migration_id,
        model=source.model,
        source=_moving(source),
        destination=destination,
        reason=reason,
        transfer=transfer,
    )


def _moving(row: InstanceRow) -> MovingInstance:
    assert row.endpoint is not None, "a row that serves has an endpoint"
    return MovingInstance(row.instance_id, row.epoch, row.host_id, row.endpoint)


async def serve_on(session: AsyncSession, request: ServeOnInput) -> bool:
    """draining → ready for the source of a migration that came to nothing; False if it ends anyway.

    Idempotent. Raises: UnknownInstance.
    """
    row = await lock_instance(session, request.source.instance_id)
    is_ours = row.epoch == request.source.epoch and row.end_reason == request.migration_id
    if row.state != InstanceState.DRAINING or not is_ours:
        return row.state == InstanceState.READY
    row.state, row.end_reason = InstanceState.READY, None
    return True


async def finish_migration(session: AsyncSession, request: FinishMigrationInput) -> ResumedMigration | None:
    """Close the row with what came of it. Idempotent: the first end stays.

    A failed attempt that an operator has followed up is told the next one, and the row stays open.
    """
    row = await session.get(MigrationRow, request.migration_id, with_for_update=True)
    if row is None or row.state != "running":
        return None
    if row.attempt > request.attempt:
        return await granted_attempt(session, row)
    move = request.move
    row.state, row.ended_at = request.state, func.clock_timestamp()
    row.requests_moved, row.rounds = move.moved, len(move.rounds)
    row.tokens_moved, row.bytes_moved = move.tokens, move.sent_bytes
    row.start_s, row.move_s, row.pause_s = request.start_s, move.elapsed_s, move.held_s
    row.observations = move.observations
    row.failure = request.failure[:LONGEST_FAILURE] or None
    await learn_move(session, row)
    return None


async def list_migrations(
    session: AsyncSession, *, model: str | None = None, instance_id: str | None = None, limit: int = 20
) -> list[MigrationRecord]:
    """Newest first."""
    source, destination = aliased(InstanceRow), aliased(InstanceRow)
    query = (
        select(
            MigrationRow,
            source.model,
            source.host_id,
            destination.host_id,
            DecisionRow.request_id,
            DecisionRow.estimate,
            MoveObservationRow.predicted_s,
        )
        .join(source, source.instance_id == MigrationRow.source_instance_id)
        .join(destination, destination.instance_id == MigrationRow.destination_instance_id)
        .join(DecisionRow, DecisionRow.decision_id == destination.decision_id)
        .outerjoin(MoveObservationRow, MoveObservationRow.migration_id == MigrationRow.migration_id)
        .order_by(MigrationRow.started_at.desc(), MigrationRow.migration_id.desc())
        .limit(limit)
    )
    if model is not None:
        query = query.where(source.model == model)
    if instance_id is not None:
        query = query.where(MigrationRow.source_instance_id == instance_id)
    return [_record(*row) for row in await session.execute(query)]


def _record(
    row: MigrationRow,
    model: str,
    source_host_id: str,
    destination_host_id: str,
    asked_by: str,
    estimate: JsonDocument | None,
    predicted_move_s: float | None,
) -> MigrationRecord:
    # An idle instance that is reused was started for somebody else.
    is_started = asked_by == row.migration_id and estimate is not None
    return MigrationRecord(
        predicted_start_s=estimate_from_json(estimate).total_s if is_started and estimate else None,
        predicted_move_s=predicted_move_s,
        migration_id=row.migration_id,
        model=model,
        source_instance_id=row.source_instance_id,
        source_host_id=source_host_id,
        destination_instance_id=row.destination_instance_id,
        destination_host_id=destination_host_id,
        state=row.state,
        reason=row.reason,
        transfer=row.transfer,
        requests_moved=row.requests_moved,
        rounds=row.rounds,
        tokens_moved=row.tokens_moved,
        bytes_moved=row.bytes_moved,
        start_s=row.start_s,
        move_s=row.move_s,
        pause_s=row.pause_s,
        observations=tuple(MoveObservation(int(tokens), seconds) for tokens, seconds in row.observations),
        started_at_unix_s=row.started_at.timestamp(),
        ended_at_unix_s=row.ended_at.timestamp() if row.ended_at else None,
        failure=row.failure,
    )


async def moving_instances(session: AsyncSession, instance_ids: Collection[str]) -> frozenset[str]:
    """Those of these instances that are being migrated now."""
    found = await session.scalars(
        select(MigrationRow.source_instance_id).where(
            MigrationRow.source_instance_id.in_(instance_ids), MigrationRow.state == "running"
        )
    )
    return frozenset(found)


async def stale_migrations(session: AsyncSession, *, older_than_s: float) -> list[ServeOnInput]:
    """Migrations that have run for longer than that, oldest first, with what would undo them."""
    rows = await session.execute(
        select(MigrationRow, InstanceRow)
        .join(InstanceRow, InstanceRow.instance_id == MigrationRow.source_instance_id)
        .where(
            MigrationRow.state == "running",
            MigrationRow.started_at < func.now() - timedelta(seconds=older_than_s),
        )
        .order_by(MigrationRow.started_at)
    )
    return [
        ServeOnInput(
            migration_id=migration.migration_id,
            source=MovingInstance(source.instance_id, source.epoch, source.host_id, source.endpoint or ""),
        )
        for migration, source in rows
    ]

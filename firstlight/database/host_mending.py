"""Making the rows agree with what a host reports: engines, checkpoints, starts that nobody carries out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, func, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from firstlight.contracts.hosts import EngineToStop, HostReport, MendInput, MendReceipt, StoredRow
from firstlight.database.decision_json import estimate_from_json
from firstlight.database.housekeeping import (
    finish_deletes,
    forget_old_refusals,
    forget_old_starts,
    forget_unused_checkpoints,
)
from firstlight.database.instance_closing import close_instance, lock_instances
from firstlight.database.instances_repository import read_instances
from firstlight.database.keys_repository import audit, list_audit
from firstlight.database.locks import lock_placements
from firstlight.database.placements import remove_placement, write_placement
from firstlight.database.records import InstanceRecord
from firstlight.database.tables import CheckpointRow, DecisionRow, HostRow, InstanceRow, PlacementRow
from firstlight.domain.errors import EngineGone, StartAbandoned, UnknownHost
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import HostState, InstanceState, PlacementState

# A row that became ready so shortly before the report may be newer than what the host looked at.
REPORT_MARGIN_S = 2.0
# How far beyond its estimate a start is given up when nobody knows whether its workflow runs.
OVERDUE_FACTOR = 4.0
# A start that met a damaged copy has told of it this long before the fleet is looked at, at most.
RECORDED_BEFORE_S = 3600.0
SERVING = (InstanceState.READY, InstanceState.DRAINING)


async def mend_host(
    session: AsyncSession, request: MendInput, *, abandoned_starts: frozenset[str] | None = None
) -> MendReceipt:
    """Make the rows agree with the host's report; name engines that no row owns.

    `abandoned_starts`: instances of `list_stale_starts` whose ColdStart is known not to run; they alone are
    given up. None: unknown, and a start is given up only when far beyond its estimate.
    Also finishes deletes whose last instance has ended, and forgets what nobody needs.
    Raises: UnknownHost.
    """
    report = request.report
    host = await session.get(HostRow, report.host_id, populate_existing=True)
    if host is None:
        raise UnknownHost(f"there is no host {report.host_id!r}", host_id=report.host_id)
    given_up = await _to_give_up(session, request, abandoned_starts)
    served = _served_before(report)
    rows = await lock_instances(session, or_(served, InstanceRow.instance_id.in_(given_up)))
    mended = [
        *await _close_without_engine(session, report, rows),
        *await _give_up(session, rows, given_up),
        *await mend_placements(session, report),
        *(f"model {name} was deleted: nothing of it runs" for name in await finish_deletes(session)),
    ]
    await forget_old_refusals(session)
    await forget_old_starts(session)
    return MendReceipt(mended=mended, orphans=await _orphans(session, report))


async def list_stale_starts(
    session: AsyncSession, *, host_id: str, older_than_s: float
) -> list[InstanceRecord]:
    """Starts on this host, or on lost ones, planned longer ago than that: ask Temporal whether they run."""
    return await read_instances(
        session,
        [
            InstanceRow.state == InstanceState.STARTING,
            InstanceRow.planned_at < func.now() - timedelta(seconds=older_than_s),
            # Nobody reports for a lost host, so every host's mending looks after it.
            or_(
                InstanceRow.host_id == host_id,
                InstanceRow.host_id.in_(select(HostRow.host_id).where(HostRow.state == HostState.LOST)),
            ),
        ],
    )


async def _orphans(session: AsyncSession, report: HostReport) -> list[EngineToStop]:
    """Engines whose instance has ended, runs elsewhere or has another epoch. Spares have no instance."""
    engines = [engine for engine in report.engines if engine.instance_id]
    rows = await session.execute(
        select(InstanceRow.instance_id, InstanceRow.epoch).where(
            InstanceRow.instance_id.in_([engine.instance_id for engine in engines]),
            InstanceRow.host_id == report.host_id,
            InstanceRow.is_live,
        )
    )
    owned = set(rows)
    return [
        EngineToStop(engine.instance_id, engine.epoch)
        for engine in engines
        if (engine.instance_id, engine.epoch) not in owned
    ]


def _served_before(report: HostReport) -> ColumnElement[bool]:
    """Rows that say an engine serves on this host, and said so when the host looked."""
    is_old: ColumnElement[bool] = true()
    if report.taken_at_unix_s:
        taken_at = datetime.fromtimestamp(report.taken_at_unix_s, UTC)
        is_old = InstanceRow.ready_at < taken_at - timedelta(seconds=REPORT_MARGIN_S)
    return and_(InstanceRow.host_id == report.host_id, InstanceRow.state.in_(SERVING), is_old)


async def _close_without_engine(
    session: AsyncSession, report: HostReport, rows: list[InstanceRow]
) -> list[str]:
    """Of our `rows`, those that serve by the book when the host has no engine of that instance and epoch."""
    reported = {(engine.instance_id, engine.epoch) for engine in report.engines}
    mended = []
    for row in rows:
        if row.state not in SERVING or (row.instance_id, row.epoch) in reported:
            continue
        was = row.state
        outcome = InstanceState.STOPPED if was == InstanceState.DRAINING else InstanceState.FAILED
        reason = f"the engine on {report.host_id} is gone"
        await close_instance(session, row, outcome=outcome, reason=reason, failure_code=EngineGone.code)
        mended.append(f"{row.instance_id} ({row.model}) was {was} though {reason}: closed as {outcome}")
    return mended


async def _to_give_up(
    session: AsyncSession, request: MendInput, abandoned_starts: frozenset[str] | None
) -> dict[str, int]:
    """Starts that nobody carries out, with the epoch they had when we looked."""
    stale = await list_stale_starts(
        session, host_id=request.report.host_id, older_than_s=request.stale_start_s
    )
    if abandoned_starts is not None:
        return {one.instance_id: one.epoch for one in stale if one.instance_id in abandoned_starts}
    return {
        one.instance_id: one.epoch for one in stale if await _is_overdue(session, one, request.stale_start_s)
    }


async def _give_up(session: AsyncSession, rows: list[InstanceRow], given_up: Mapping[str, int]) -> list[str]:
    mended = []
    for row in rows:
        # It may have become ready, or have been planned anew, while we looked.
        if row.state != InstanceState.STARTING or given_up.get(row.instance_id) != row.epoch:
            continue
        reason = "its start was begun and nobody carries it out"
        await close_instance(
            session, row, outcome=InstanceState.FAILED, reason=reason, failure_code=StartAbandoned.code
        )
        mended.append(f"{row.instance_id} ({row.model}) on {row.host_id} was given up: {reason}")
    return mended


async def _is_overdue(session: AsyncSession, record: InstanceRecord, stale_start_s: float) -> bool:
    found = (
        await session.execute(
            select(DecisionRow.estimate, func.extract("epoch", func.now() - InstanceRow.planned_at))
            .join(InstanceRow, InstanceRow.decision_id == DecisionRow.decision_id)
            .where(InstanceRow.instance_id == record.instance_id)
        )
    ).one()
    estimate = estimate_from_json(found[0] or {})
    return float(found[1]) > stale_start_s + OVERDUE_FACTOR * estimate.total_s


async def mend_placements(session: AsyncSession, report: HostReport) -> list[str]:
    """Placements as reported, of checkpoints that are known; others are the store's to evict."""
    await lock_placements(session, report.host_id)
    rows = (
        await session.scalars(
            select(PlacementRow)
            .where(PlacementRow.host_id == report.host_id)
            .execution_options(populate_existing=True)
        )
    ).all()
    kept = {(row.checkpoint_id, Tier(row.tier)): PlacementState(row.state) for row in rows}
    written_bytes = {(row.checkpoint_id, Tier(row.tier)): row.size_bytes for row in rows}
    stored = await _known(session, report.stored)
    real = {
        (row.checkpoint_id, tier): PlacementState.QUARANTINED if row.quarantined else PlacementState.READY
        for row in stored
        for tier, is_there in ((Tier.SSD, row.on_ssd), (Tier.DRAM, row.in_dram))
        if is_there
    }
    sizes = {row.checkpoint_id: row.size_bytes for row in stored}
    condemned = {row.checkpoint_id for row in stored if row.quarantined}
    mended = []
    for checkpoint_id, tier in sorted(kept.keys() - real.keys()):
        # A load or download under way is not reported yet.
        if kept[(checkpoint_id, tier)] is PlacementState.LOADING:
            continue
        await remove_placement(session, host_id=report.host_id, checkpoint_id=checkpoint_id, tier=tier)
        mended.append(f"{report.host_id} no longer holds {checkpoint_id} in {tier}")
        if tier is Tier.SSD and checkpoint_id in condemned:
            await _record_damage(session, host_id=report.host_id, checkpoint_id=checkpoint_id)
    for (checkpoint_id, tier), state in sorted(real.items()):
        is_known = kept.get((checkpoint_id, tier)) is state
        # A route that is published while its first download runs has written what that was expected to take.
        if is_known and written_bytes[(checkpoint_id, tier)] == sizes[checkpoint_id]:
            continue
        await write_placement(
            session,
            host_id=report.host_id,
            checkpoint_id=checkpoint_id,
            tier=tier,
            size_bytes=sizes[checkpoint_id],
            state=state,
        )
        if not is_known:
            mended.append(f"{report.host_id} holds {checkpoint_id} in {tier} ({state})")
    if mended:
        await forget_unused_checkpoints(session)
    return mended


async def _record_damage(session: AsyncSession, *, host_id: str, checkpoint_id: str) -> None:
    """Of a copy that no start met: another host got wrong bytes of it. One that did has recorded it."""
    actor, subject = f"host/{host_id}", f"checkpoint/{checkpoint_id}"
    since_unix_s = time.time() - RECORDED_BEFORE_S
    if not await list_audit(session, subject=subject, actor=actor, since_unix_s=since_unix_s, limit=1):
        detail = {"message": "its store found its own copy damaged when another host had read it wrong"}
        await audit(session, actor=actor, act="checkpoint quarantined", subject=subject, detail=detail)


async def _known(session: AsyncSession, stored: list[StoredRow]) -> list[StoredRow]:
    """Rows of checkpoints we know, a copy with other bytes than the first conversion's as quarantined."""
    found = await session.execute(
        select(CheckpointRow.checkpoint_id, CheckpointRow.manifest_digest).where(
            CheckpointRow.checkpoint_id.in_([row.checkpoint_id for row in stored])
        )
    )
    digests = dict(found.all())
    return [
        row
        if digests[row.checkpoint_id] in (None, row.manifest_digest) or not row.manifest_digest
        else StoredRow(row.checkpoint_id, row.size_bytes, row.on_ssd, row.in_dram, True, row.manifest_digest)
        for row in stored
        if row.checkpoint_id in digests
    ]

"""Hosts: registration, lease, loss, and what lies on them. What is longer lives beside it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Interval, cast, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from firstlight.contracts.hosts import FailHostInput, FailHostReceipt
from firstlight.database.edges import edges_from_json, edges_to_json, prior_edge
from firstlight.database.host_listing import list_hosts
from firstlight.database.host_mending import list_stale_starts, mend_host
from firstlight.database.housekeeping import finish_deletes
from firstlight.database.instance_closing import close_instance, lock_instances
from firstlight.database.keys_repository import audit
from firstlight.database.locks import lock_fleet, lock_placements
from firstlight.database.placements import record_checkpoint, remove_placement, write_placement
from firstlight.database.records import GpuDescription, HostRecord, HostRegistration
from firstlight.database.tables import GpuRow, HostRow, InstanceRow, PlacementRow, ReservationRow
from firstlight.domain.errors import UnknownHost
from firstlight.domain.fleet import Edge, Tier
from firstlight.domain.lifecycle import HOST_STEPS, HostState, InstanceState, check_step

__all__ = [
    "HOST_LOST",
    "HostRecord",
    "HostRegistration",
    "fail_host",
    "lease_remaining_s",
    "list_hosts",
    "list_stale_starts",
    "mend_host",
    "register_host",
    "renew_lease",
    "set_peer_endpoint",
    "set_placements",
    "set_probe",
]

# failure_code of what a lost host ran.
HOST_LOST = "host_lost"


async def register_host(session: AsyncSession, registration: HostRegistration, *, lease_s: float) -> int:
    """Join or rejoin the fleet; the number returned fences off every earlier registration.

    A host that is draining stays so. What was learned of its edges is kept.
    """
    # A decision that has seen a GPU must not find it gone.
    await lock_fleet(session)
    row = await _lock(session, registration.host_id)
    if row is None:
        row = HostRow(host_id=registration.host_id, registration=0, state=HostState.READY, edges={})
        session.add(row)
    elif row.state == HostState.LOST:
        check_step(HOST_STEPS, what=f"host {row.host_id}", old=HostState.LOST, new=HostState.READY)
        row.state = HostState.READY
    row.registration += 1
    row.lost_at = None
    row.host_class = registration.host_class
    row.host_address = registration.host_address
    row.store_address = registration.store_address
    row.ssd_capacity_bytes = registration.ssd_capacity_bytes
    row.dram_capacity_bytes = registration.dram_capacity_bytes
    # A store that has lost its state does not know yet what it measured once.
    row.ssd_read_bytes_per_s = registration.ssd_read_bytes_per_s or row.ssd_read_bytes_per_s or 0.0
    row.dram_to_gpu_bytes_per_s = (
        (registration.dram_to_gpu_bytes_per_s or row.dram_to_gpu_bytes_per_s or 0.0)
        if registration.gpus
        else 0.0
    )
    row.peer_endpoint = registration.peer_endpoint
    row.edges = _seeded(row, has_gpus=bool(registration.gpus))
    row.registered_at = row.renewed_at = func.clock_timestamp()
    row.lease_expires_at = _lease_end(lease_s)
    number = row.registration
    await session.flush()
    await _write_gpus(session, registration)
    return number


async def set_peer_endpoint(session: AsyncSession, *, host_id: str, peer_endpoint: str) -> None:
    """Where other stores may fetch from this host's, as its store says now; empty: nowhere."""
    await session.execute(
        update(HostRow)
        .where(HostRow.host_id == host_id, HostRow.peer_endpoint != peer_endpoint)
        .values(peer_endpoint=peer_endpoint)
    )


async def set_probe(
    session: AsyncSession, *, host_id: str, ssd_read_bytes_per_s: float, dram_to_gpu_bytes_per_s: float
) -> None:
    """What the host's store has measured (0: nothing new); edges nothing was seen of start from it."""
    row = await _lock(session, host_id)
    if row is None:
        return
    row.ssd_read_bytes_per_s = ssd_read_bytes_per_s or row.ssd_read_bytes_per_s
    row.dram_to_gpu_bytes_per_s = dram_to_gpu_bytes_per_s or row.dram_to_gpu_bytes_per_s
    row.edges = _seeded(row, has_gpus=str(Edge.DRAM_TO_GPU) in row.edges)


async def renew_lease(session: AsyncSession, *, host_id: str, registration: int, lease_s: float) -> bool:
    """False: superseded or lost; the host must register again."""
    renewed = await session.execute(
        update(HostRow)
        .where(
            HostRow.host_id == host_id,
            HostRow.registration == registration,
            HostRow.state != HostState.LOST,
        )
        .values(renewed_at=func.clock_timestamp(), lease_expires_at=_lease_end(lease_s))
        .returning(HostRow.host_id)
    )
    return renewed.scalar_one_or_none() is not None


async def host_address(session: AsyncSession, host_id: str) -> str | None:
    """Where the host's supervisor answers; None where it is not expected to."""
    answers = HostRow.state != HostState.LOST
    found: str | None = await session.scalar(
        select(HostRow.host_address).where(HostRow.host_id == host_id, answers)
    )
    return found


async def lease_remaining_s(session: AsyncSession, *, host_id: str, registration: int) -> float | None:
    """Seconds by the database's clock, negative once expired; None: superseded, lost or unknown."""
    remaining = await session.scalar(
        select(func.extract("epoch", HostRow.lease_expires_at - func.clock_timestamp())).where(
            HostRow.host_id == host_id,
            HostRow.registration == registration,
            HostRow.state != HostState.LOST,
        )
    )
    return float(remaining) if remaining is not None else None


async def fail_host(session: AsyncSession, request: FailHostInput) -> FailHostReceipt:
    """Mark the host lost and fail all it served, in one transaction. Idempotent per registration.

    A start on it is left to its ColdStart, which finds the host silent and plans it anew elsewhere; the
    lost host takes no plan any more. `marked` is False for a registration that was superseded.
    """
    row = await _lock(session, request.host_id)
    if row is None or row.registration != request.registration:
        return FailHostReceipt(marked=False)
    if row.state != HostState.LOST:
        check_step(HOST_STEPS, what=f"host {row.host_id}", old=HostState(row.state), new=HostState.LOST)
        row.state = HostState.LOST
        row.lost_at = func.clock_timestamp()
        await audit(
            session,
            actor="control",
            act="host lost",
            subject=f"host/{row.host_id}",
            detail={"reason": request.reason},
        )
        await session.flush()
    await _fail_instances(session, row.host_id, request.reason)
    # Its memory is gone with it; its disk may come back.
    await lock_placements(session, row.host_id)
    await session.execute(
        delete(PlacementRow).where(PlacementRow.host_id == row.host_id, PlacementRow.tier == Tier.DRAM)
    )
    await finish_deletes(session)
    failed = await session.scalars(
        select(InstanceRow.instance_id)
        .join(HostRow, HostRow.host_id == InstanceRow.host_id)
        .where(
            InstanceRow.host_id == row.host_id,
            InstanceRow.failure_code == HOST_LOST,
            InstanceRow.ended_at >= HostRow.lost_at,
        )
        .order_by(InstanceRow.instance_id)
    )
    return FailHostReceipt(marked=True, failed_instances=list(failed))


async def set_placements(
    session: AsyncSession,
    *,
    host_id: str,
    checkpoint_id: str,
    ssd: bool | None,
    dram: bool | None,
    size_bytes: int,
    manifest_digest: str,
) -> None:
    """Record where the checkpoint lies on the host (None: leave as it is), and its digest when unset.

    Raises: UnknownHost, UnknownCheckpoint, CheckpointMismatch.
    """
    if await session.get(HostRow, host_id) is None:
        raise UnknownHost(f"there is no host {host_id!r}", host_id=host_id)
    await record_checkpoint(
        session, checkpoint_id=checkpoint_id, manifest_digest=manifest_digest, size_bytes=size_bytes
    )
    await lock_placements(session, host_id)
    for tier, present in ((Tier.SSD, ssd), (Tier.DRAM, dram)):
        if present:
            await write_placement(
                session, host_id=host_id, checkpoint_id=checkpoint_id, tier=tier, size_bytes=size_bytes
            )
        elif present is not None:
            await remove_placement(session, host_id=host_id, checkpoint_id=checkpoint_id, tier=tier)


async def _lock(session: AsyncSession, host_id: str) -> HostRow | None:
    # Its key stays as it is, so whoever only refers to the host need not wait.
    return await session.get(HostRow, host_id, with_for_update={"key_share": True}, populate_existing=True)


# Any: SQLAlchemy types an interval's arithmetic so.
def _lease_end(lease_s: float) -> ColumnElement[Any]:
    return func.clock_timestamp() + cast(literal(timedelta(seconds=lease_s)), Interval)


def _seeded(row: HostRow, *, has_gpus: bool) -> dict[str, object]:
    """Edges as learned; those with no observation yet start from what the host's probe measured."""
    edges = edges_from_json(row.edges)
    for edge in Edge:
        if edge not in edges or edges[edge].observations == 0:
            edges[edge] = prior_edge(
                edge,
                ssd_read_bytes_per_s=row.ssd_read_bytes_per_s,
                dram_to_gpu_bytes_per_s=row.dram_to_gpu_bytes_per_s,
            )
    if not has_gpus:
        # Its engines compute in the memory the bytes are in.
        edges.pop(Edge.DRAM_TO_GPU, None)
    return edges_to_json(edges)


def _described(registration: HostRegistration) -> tuple[GpuDescription, ...]:
    slot = GpuDescription(name="", memory_bytes=registration.gpu_memory_bytes)
    return registration.gpus or (slot,) * registration.gpu_count


async def _write_gpus(session: AsyncSession, registration: HostRegistration) -> None:
    """One row per GPU; a GPU that is no longer there goes, unless an instance still holds it."""
    if registration.gpu_count:
        rows = [
            {
                "host_id": registration.host_id,
                "gpu_index": index,
                "memory_bytes": gpu.memory_bytes,
                "name": gpu.name,
            }
            for index, gpu in enumerate(_described(registration))
        ]
        statement = insert(GpuRow).values(rows)
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["host_id", "gpu_index"],
                set_={"memory_bytes": statement.excluded.memory_bytes, "name": statement.excluded.name},
            )
        )
    is_held = (
        select(ReservationRow.instance_id)
        .where(ReservationRow.host_id == GpuRow.host_id, ReservationRow.gpu_index == GpuRow.gpu_index)
        .exists()
    )
    await session.execute(
        delete(GpuRow).where(
            GpuRow.host_id == registration.host_id, GpuRow.gpu_index >= registration.gpu_count, ~is_held
        )
    )


async def _fail_instances(session: AsyncSession, host_id: str, reason: str) -> None:
    rows = await lock_instances(
        session,
        InstanceRow.host_id == host_id,
        InstanceRow.state.in_([InstanceState.READY, InstanceState.DRAINING]),
    )
    for row in rows:
        await close_instance(
            session,
            row,
            outcome=InstanceState.FAILED,
            reason=f"host {host_id} was lost: {reason}",
            failure_code=HOST_LOST,
        )

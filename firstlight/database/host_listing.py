"""Hosts as an operator sees them: leases, who holds which GPU, what lies where."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.edges import edges_from_json
from firstlight.database.records import GpuRecord, HostRecord, PlacementRecord
from firstlight.database.tables import GpuRow, HostRow, InstanceRow, PlacementRow, ReservationRow
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import HostState, InstanceState, PlacementState


async def list_hosts(session: AsyncSession) -> list[HostRecord]:
    """All hosts by id, lost ones included."""
    rows = await session.execute(
        select(HostRow, func.extract("epoch", HostRow.lease_expires_at - func.clock_timestamp()))
        .order_by(HostRow.host_id)
        .execution_options(populate_existing=True)
    )
    gpus, placements = await _gpus(session), await _placements(session)
    return [
        _record(row, float(remaining_s), gpus[row.host_id], placements[row.host_id])
        for row, remaining_s in rows
    ]


async def _gpus(session: AsyncSession) -> dict[str, list[GpuRecord]]:
    rows = await session.execute(
        select(GpuRow, InstanceRow.instance_id, InstanceRow.model, InstanceRow.state)
        .outerjoin(
            ReservationRow,
            (ReservationRow.host_id == GpuRow.host_id) & (ReservationRow.gpu_index == GpuRow.gpu_index),
        )
        .outerjoin(InstanceRow, InstanceRow.instance_id == ReservationRow.instance_id)
        .order_by(GpuRow.host_id, GpuRow.gpu_index)
    )
    found: dict[str, list[GpuRecord]] = defaultdict(list)
    for gpu, instance_id, model, state in rows:
        found[gpu.host_id].append(
            GpuRecord(
                gpu_index=gpu.gpu_index,
                memory_bytes=gpu.memory_bytes,
                name=gpu.name,
                instance_id=instance_id,
                model=model,
                instance_state=InstanceState(state) if state else None,
            )
        )
    return found


async def _placements(session: AsyncSession) -> dict[str, list[PlacementRecord]]:
    rows = await session.scalars(
        select(PlacementRow)
        .order_by(PlacementRow.checkpoint_id, PlacementRow.tier)
        .execution_options(populate_existing=True)
    )
    found: dict[str, list[PlacementRecord]] = defaultdict(list)
    for row in rows:
        found[row.host_id].append(
            PlacementRecord(
                checkpoint_id=row.checkpoint_id,
                tier=Tier(row.tier),
                state=PlacementState(row.state),
                size_bytes=row.size_bytes,
                updated_at_unix_s=row.updated_at.timestamp(),
            )
        )
    return found


def _record(
    row: HostRow, lease_remaining_s: float, gpus: list[GpuRecord], placements: list[PlacementRecord]
) -> HostRecord:
    used = {
        tier: sum(placement.size_bytes for placement in placements if placement.tier is tier)
        for tier in (Tier.SSD, Tier.DRAM)
    }
    return HostRecord(
        host_id=row.host_id,
        host_class=row.host_class,
        host_address=row.host_address,
        store_address=row.store_address,
        state=HostState(row.state),
        registration=row.registration,
        lease_remaining_s=lease_remaining_s,
        renewed_at_unix_s=row.renewed_at.timestamp(),
        registered_at_unix_s=row.registered_at.timestamp(),
        ssd_capacity_bytes=row.ssd_capacity_bytes,
        dram_capacity_bytes=row.dram_capacity_bytes,
        ssd_used_bytes=used[Tier.SSD],
        dram_used_bytes=used[Tier.DRAM],
        ssd_read_bytes_per_s=row.ssd_read_bytes_per_s,
        dram_to_gpu_bytes_per_s=row.dram_to_gpu_bytes_per_s,
        gpus=tuple(gpus),
        placements=tuple(placements),
        edges=edges_from_json(row.edges),
    )

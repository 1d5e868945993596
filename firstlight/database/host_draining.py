"""Taking a host out of service and back, and what still runs there."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.instances_repository import read_instances
from firstlight.database.records import InstanceRecord
from firstlight.database.tables import HostRow, InstanceRow
from firstlight.domain.errors import Conflict, UnknownHost
from firstlight.domain.lifecycle import HOST_STEPS, HostState, check_step


async def set_draining(session: AsyncSession, host_id: str, *, is_draining: bool) -> HostState:
    """ready ⇄ draining; the state before. Idempotent.

    Raises: UnknownHost; Conflict for a host that is lost.
    """
    row = await session.scalar(select(HostRow).where(HostRow.host_id == host_id).with_for_update())
    if row is None:
        raise UnknownHost(f"there is no host {host_id!r}", host_id=host_id)
    if row.state == HostState.LOST:
        raise Conflict(f"host {host_id} is lost: nothing runs there that could be moved", host_id=host_id)
    old, new = HostState(row.state), HostState.DRAINING if is_draining else HostState.READY
    check_step(HOST_STEPS, what=f"host {host_id}", old=old, new=new)
    row.state = new
    return old


async def instances_of(session: AsyncSession, host_id: str) -> list[InstanceRecord]:
    """Live instances of a host, newest first."""
    return await read_instances(session, [InstanceRow.host_id == host_id, InstanceRow.is_live])

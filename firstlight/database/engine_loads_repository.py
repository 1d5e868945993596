"""What engines have to do, as their hosts' agents saw it last."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.loads import EngineLoad
from firstlight.database.tables import EngineLoadRow, InstanceRow
from firstlight.domain.lifecycle import InstanceState


async def list_loads(session: AsyncSession) -> dict[str, tuple[int, int]]:
    """(requests, their tokens) by instance, of all API replicas together, as last seen."""
    rows = await session.execute(
        select(EngineLoadRow.instance_id, EngineLoadRow.requests, EngineLoadRow.tokens)
        .join(InstanceRow, InstanceRow.instance_id == EngineLoadRow.instance_id)
        .where(InstanceRow.is_live)
    )
    return {instance_id: (requests, tokens) for instance_id, requests, tokens in rows}


async def write_loads(session: AsyncSession, loads: Collection[EngineLoad]) -> None:
    """Replace what was known of these instances; of one that does not serve nothing is kept."""
    ids = sorted(load.instance_id for load in loads)
    serving = set(
        await session.scalars(
            select(InstanceRow.instance_id).where(
                InstanceRow.instance_id.in_(ids), InstanceRow.state == InstanceState.READY
            )
        )
    )
    for load in sorted(loads, key=lambda one: one.instance_id):
        if load.instance_id not in serving:
            continue
        idle_since = None if load.idle_s is None else func.clock_timestamp() - timedelta(seconds=load.idle_s)
        values = {
            "requests": load.requests,
            "tokens": load.tokens,
            "idle_since": idle_since,
            "seen_at": func.clock_timestamp(),
        }
        await session.execute(
            insert(EngineLoadRow)
            .values(instance_id=load.instance_id, **values)
            .on_conflict_do_update(index_elements=["instance_id"], set_=values)
        )

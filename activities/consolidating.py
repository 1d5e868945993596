"""consolidate: begin to move what a nearly idle host runs onto busier ones."""

from __future__ import annotations

import time

from temporalio.client import Client

from activities.moving_off import begin_migration
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_picture
from firstlight.domain.consolidation import consolidate
from firstlight.rpc.channels import Channels


async def consolidate_fleet(
    database: Database, client: Client, channels: Channels, *, most_requests: int
) -> list[str]:
    """One host at most; one sentence per instance that moves, or why it does not."""
    async with database.session() as session:
        picture = await read_picture(session, now_unix_s=time.time())
    plan = consolidate(picture.snapshot, most_requests=most_requests)
    if plan is None:
        return []
    told = []
    for move in plan.moves:
        obstacle = await begin_migration(
            database,
            client,
            channels,
            instance_id=move.instance_id,
            to_host=move.to_host,
            reason=f"{plan.host_id} is emptied: it runs {plan.requests} requests",
        )
        told.append(obstacle or f"{move.instance_id} moves from {plan.host_id} to {move.to_host}")
    return told

"""move_off: begin a migration of every instance that a draining host still runs."""

from __future__ import annotations

import time

from temporalio.client import Client

from firstlight.contracts.draining import DrainInput, MoveOffReceipt
from firstlight.contracts.starting import start_migration
from firstlight.database.connection import Database
from firstlight.database.host_draining import instances_of
from firstlight.database.migrations_repository import moving_instances, plan_migration
from firstlight.domain.errors import Conflict, NoCapacity, NotFound
from firstlight.domain.lifecycle import InstanceState
from firstlight.rpc.channels import Channels
from firstlight.rpc.idle_engines import IdleEngines


async def move_off(
    database: Database, client: Client, channels: Channels, request: DrainInput
) -> MoveOffReceipt:
    """Idempotent: what moves already is counted, not begun again."""
    async with database.session() as session:
        live = await instances_of(session, request.host_id)
        moving = await moving_instances(session, [one.instance_id for one in live])
    begun = 0
    stuck: list[str] = []
    for instance in live:
        if instance.state is not InstanceState.READY or instance.instance_id in moving:
            continue
        obstacle = await begin_migration(
            database,
            client,
            channels,
            instance_id=instance.instance_id,
            to_host=None,
            reason=request.reason,
        )
        if obstacle is None:
            begun += 1
        else:
            stuck.append(obstacle)
    return MoveOffReceipt(left=len(live), begun=begun, moving=len(moving) + begun, stuck=stuck)


async def begin_migration(
    database: Database,
    client: Client,
    channels: Channels,
    *,
    instance_id: str,
    to_host: str | None,
    reason: str,
) -> str | None:
    """None when it is on its way, else why it is not."""
    try:
        migration = await plan_migration(
            database,
            instance_id=instance_id,
            to_host=to_host,
            find_idle=IdleEngines(channels).find,
            reason=reason,
            now_unix_s=time.time(),
        )
    except (NoCapacity, Conflict, NotFound) as obstacle:
        return f"{instance_id}: {obstacle.message}"
    await start_migration(client, migration)
    return None

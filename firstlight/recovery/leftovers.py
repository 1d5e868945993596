"""What a workflow left behind: rows in Postgres, engines and bytes on hosts, workflows that go on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.client import Client

from firstlight.database.connection import Database
from firstlight.database.host_draining import instances_of
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import get_instance
from firstlight.database.migrations_repository import list_migrations
from firstlight.database.records import HostRecord, InstanceRecord
from firstlight.domain.errors import DatabaseUnavailable, FirstlightError, StorageError, UnknownInstance
from firstlight.recovery.found import statuses
from firstlight.recovery.subjects import Subjects
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient

HOST_ANSWERS_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """`where`: postgres, temporal, or a host's id. `holds`: it keeps a GPU or memory from others."""

    where: str
    what: str
    holds: bool = False


async def leftovers(
    client: Client, database: Database | None, subjects: Subjects
) -> tuple[tuple[Leftover, ...], tuple[str, ...]]:
    """What was found, and sentences about what could not be looked at."""
    found = [
        Leftover(where="temporal", what=f"workflow {name} is {status}")
        for name, status in (await statuses(client, subjects.workflow_ids)).items()
    ]
    if database is None:
        return tuple(found), ("no database is named (FIRSTLIGHT_DATABASE_URL): its rows were not read",)
    try:
        async with database.session() as session:
            rows, hosts = await _rows(session, subjects)
    except (DatabaseUnavailable, StorageError) as error:
        return tuple(found), (f"rows in postgres, and hosts: {error.message}",)
    found += rows
    async with Channels() as channels:
        looked = await asyncio.gather(*(_on_host(channels, host, subjects) for host in hosts))
    silent = [problem for _, problem in looked if problem]
    return (*found, *(one for there, _ in looked for one in there)), tuple(silent)


async def _rows(session: AsyncSession, subjects: Subjects) -> tuple[list[Leftover], list[HostRecord]]:
    """What is written, and the hosts to be asked."""
    found = [await _named(session, instance_id) for instance_id in subjects.instance_ids]
    found += await _migration(session, subjects)
    hosts = [host for host in await list_hosts(session) if host.host_id in subjects.host_ids]
    for host in hosts:
        found += _host(host, subjects)
        if subjects.has_whole_hosts:
            found += [_instance(row) for row in await instances_of(session, host.host_id)]
    return found, hosts


async def _named(session: AsyncSession, instance_id: str) -> Leftover:
    try:
        return _instance(await get_instance(session, instance_id))
    except UnknownInstance:
        return Leftover(where="postgres", what=f"instance {instance_id} is forgotten")


def _instance(row: InstanceRecord) -> Leftover:
    gpus = ", ".join(str(index) for index in row.gpu_indices)
    held = f", holds GPU {gpus} of {row.host_id}" if gpus else ", holds no GPU"
    why = f": {row.failure or row.end_reason}" if row.failure or row.end_reason else ""
    return Leftover(
        where="postgres",
        what=f"instance {row.instance_id} is {row.state} under epoch {row.epoch}{held}{why}",
        holds=bool(gpus),
    )


async def _migration(session: AsyncSession, subjects: Subjects) -> list[Leftover]:
    if not subjects.migration_id:
        return []
    rows = await list_migrations(session, instance_id=subjects.instance_ids[0], limit=200)
    return [
        Leftover(
            where="postgres",
            what=f"migration {row.migration_id} is {row.state}, {row.requests_moved} requests moved",
            holds=row.state == "running",
        )
        for row in rows
        if row.migration_id == subjects.migration_id
    ]


def _host(host: HostRecord, subjects: Subjects) -> list[Leftover]:
    found = [Leftover(where="postgres", what=f"host {host.host_id} is {host.state}")]
    for placement in host.placements:
        if placement.checkpoint_id == subjects.checkpoint_id:
            how = f"{placement.state}, {placement.size_bytes / 1e6:.0f} MB"
            what = f"{host.host_id} has {placement.checkpoint_id} in {placement.tier} ({how})"
            found.append(Leftover(where="postgres", what=what))
    return found


async def _on_host(
    channels: Channels, host: HostRecord, subjects: Subjects
) -> tuple[list[Leftover], str | None]:
    """What the host's own processes say; a silent one is told of, not waited for."""
    supervisor = HostClient(channels, host.host_address)
    store = StoreClient(channels, host.store_address)
    try:
        engines, stored = await asyncio.gather(
            supervisor.list_engines(timeout_s=HOST_ANSWERS_WITHIN_S), _inventory(store)
        )
    except (FirstlightError, TimeoutError) as error:
        return [], f"{host.host_id} was not asked: {error}"
    found = [
        Leftover(
            where=host.host_id,
            what=f"engine of {engine.instance_id} runs under epoch {engine.epoch} ({engine.state})",
            holds=True,
        )
        for engine in engines.engines
        if engine.instance_id in subjects.instance_ids or (subjects.has_whole_hosts and engine.instance_id)
    ]
    found += [
        Leftover(where=host.host_id, what=f"store has {row} of {subjects.checkpoint_id}")
        for checkpoint_id, row in stored
        if checkpoint_id == subjects.checkpoint_id
    ]
    return found, None


async def _inventory(store: StoreClient) -> list[tuple[str, str]]:
    reply = await asyncio.wait_for(store.inventory(), HOST_ANSWERS_WITHIN_S)
    return [
        (
            row.checkpoint_id,
            f"{row.size_bytes / 1e6:.0f} MB"
            + (" on SSD" if row.on_ssd else "")
            + (" in DRAM" if row.in_dram else "")
            + (", quarantined" if row.quarantined else ""),
        )
        for row in reply.checkpoints
    ]

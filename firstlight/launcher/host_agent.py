"""The agent of one GPU host: polls the host's task queue and keeps its membership of the fleet.

It holds no state of its own: killed and started again, it finds engines and bytes where they were.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from prometheus_client import CollectorRegistry
from temporalio.client import Client
from temporalio.worker import Interceptor, Worker

from activities.host import GpuHost
from firstlight.contracts.activities import HostActivities
from firstlight.contracts.naming import host_queue
from firstlight.database.connection import Database
from firstlight.database.records import GpuDescription, HostRegistration
from firstlight.domain.errors import EngineGone, InvalidSettings, StartTimeout
from firstlight.domain.names import HostId
from firstlight.launcher.activity_boundaries import boundaries
from firstlight.launcher.activity_figures import ActivityFigures
from firstlight.launcher.control_worker import GRACEFUL_SHUTDOWN, database_url
from firstlight.launcher.departure import Departure
from firstlight.launcher.gpu_host import host_dir, host_ids
from firstlight.launcher.host_figures import HostFigures
from firstlight.launcher.load_mirror import LOOK_EVERY_S, LoadMirror
from firstlight.launcher.membership import Membership
from firstlight.launcher.metrics_server import role_registry, serving_metrics
from firstlight.launcher.placement_mirror import PlacementMirror
from firstlight.launcher.role_process import AGENT, LEAVE_WITHIN_S, run_role, unless_stopped
from firstlight.launcher.schema_check import check_schema
from firstlight.launcher.temporal_client import connect
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.engine_loads import EngineLoads
from firstlight.settings import Settings, read_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    host: str
    store: str


def host_worker(
    client: Client, host_id: str, activities: HostActivities, *, beside: Sequence[Interceptor] = ()
) -> Worker:
    """`beside` are interceptors beyond those of the client and of tests."""
    return Worker(
        client,
        task_queue=host_queue(host_id),
        activities=[
            activities.download_checkpoint,
            activities.bring_up,
            activities.watch_instance,
            activities.stop_instance,
            activities.move_requests,
            activities.report_inventory,
        ],
        interceptors=[*boundaries(), *beside],
        max_concurrent_activities=200,
        # A cancellation travels back with a heartbeat, so heartbeats must not be held back for long.
        max_heartbeat_throttle_interval=timedelta(milliseconds=300),
        default_heartbeat_throttle_interval=timedelta(milliseconds=300),
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set. Raises: InvalidSettings."""
    database = Database(database_url(settings), pool_size=3)
    try:
        await check_schema(database_url(settings))
        async with Channels() as channels:
            await _watched(settings, channels, database, stop)
    finally:
        await database.close()
    log.info("agent stopped")


async def _watched(settings: Settings, channels: Channels, database: Database, stop: asyncio.Event) -> None:
    """Its figures, and those of its store and engines, can be seen while Temporal or Postgres is away."""
    host_id = _own_id(settings)
    at = addresses(settings, host_id)
    registry = role_registry()
    figures = HostFigures(
        host_id=host_id,
        store=StoreClient(channels, at.store),
        host=HostClient(channels, at.host),
        loads=EngineLoads(channels),
    )
    async with serving_metrics(settings, registry, gather=figures.gather):
        await _work(settings, channels, database, stop, at=at, figures=figures, registry=registry)


async def _work(
    settings: Settings,
    channels: Channels,
    database: Database,
    stop: asyncio.Event,
    *,
    at: Addresses,
    figures: HostFigures,
    registry: CollectorRegistry,
) -> None:
    host_id = figures.host_id
    client = await unless_stopped(connect(settings), stop)
    host = await unless_stopped(_describe(host_id, at, channels), stop)
    if client is None or host is None:
        return
    activities = GpuHost(
        host_id=host_id,
        channels=channels,
        host_address=at.host,
        store_address=at.store,
        database=database,
    )
    membership = Membership(database=database, client=client, host=host, lease_s=settings.lease_s)
    figures.is_member = membership.is_member
    departure = Departure(
        host_id=host_id,
        database=database,
        client=client,
        loads=EngineLoads(channels, within_s=LOOK_EVERY_S),
        note=host_dir(settings.state_dir, host_id) / "drains-to-stop",
    )
    # Polling comes before joining: a host that may be chosen must take the work up.
    async with host_worker(client, host_id, activities, beside=[ActivityFigures(registry)]):
        log.info("agent polls %s", host_queue(host_id))
        mirror = PlacementMirror(
            host_id=host_id,
            store=StoreClient(channels, at.store),
            database=database,
            is_member=membership.is_member,
        )
        loads = LoadMirror(
            host=HostClient(channels, at.host),
            host_id=host_id,
            loads=EngineLoads(channels, within_s=LOOK_EVERY_S),
            database=database,
            is_member=membership.is_member,
        )
        # A host that drains is a member to the end: it renews its lease and works for its own migrations.
        may_go = asyncio.Event()
        going = asyncio.create_task(_drained(departure, stop, may_go, within_s=settings.drain_on_stop_s))
        try:
            await unless_stopped(_all(departure, membership, mirror, loads), may_go)
        finally:
            going.cancel()
        await departure.leave(membership.registration)


async def _drained(
    departure: Departure, stop: asyncio.Event, may_go: asyncio.Event, *, within_s: float
) -> None:
    """Set `may_go` once `stop` is set and the host is empty, or has been waited for long enough."""
    await stop.wait()
    try:
        if within_s > 0:
            await departure.drain(within_s=within_s)
    finally:
        may_go.set()


async def _all(
    departure: Departure, membership: Membership, mirror: PlacementMirror, loads: LoadMirror
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(departure.come_back())
        group.create_task(membership.keep())
        group.create_task(mirror.keep())
        group.create_task(loads.keep())


def _own_id(settings: Settings) -> HostId:
    ids = host_ids(settings)
    if len(ids) != 1:
        raise InvalidSettings(
            "an agent serves one host: name it in FIRSTLIGHT_HOST_IDS", setting="FIRSTLIGHT_HOST_IDS"
        )
    return ids[0]


def addresses(settings: Settings, host_id: HostId) -> Addresses:
    """From the settings, else from the file the supervisor publishes. Raises: InvalidSettings."""
    if settings.host_address and settings.store_address:
        return Addresses(host=settings.host_address, store=settings.store_address)
    path = host_dir(settings.state_dir, host_id) / "host.json"
    try:
        published = json.loads(path.read_text())
        return Addresses(host=published["host_address"], store=published["store_address"])
    except (OSError, ValueError, KeyError) as failure:
        raise InvalidSettings(
            f"{host_id} is not running: set FIRSTLIGHT_HOST_ADDRESS and FIRSTLIGHT_STORE_ADDRESS, or start "
            f"its supervisor, which writes {path}",
            setting="FIRSTLIGHT_HOST_ADDRESS",
        ) from failure


async def _describe(host_id: HostId, at: Addresses, channels: Channels) -> HostRegistration:
    """What this machine has; waits for a store and a supervisor that are starting."""
    store, host = StoreClient(channels, at.store), HostClient(channels, at.host)
    is_told = False
    while True:
        try:
            stored, engines = await store.inventory(), await host.list_engines()
            break
        except (EngineGone, StartTimeout) as failure:
            if not is_told:
                log.warning("waiting for %s: %s", host_id, failure.message)
            is_told = True
        await asyncio.sleep(0.2)
    gpus = tuple(GpuDescription(name=gpu.name, memory_bytes=gpu.memory_bytes) for gpu in engines.gpus)
    return HostRegistration(
        host_id=host_id,
        host_class=_host_class(gpus),
        host_address=at.host,
        store_address=at.store,
        gpu_count=engines.gpu_count,
        gpus=gpus,
        # Without GPUs an engine's share of the machine's memory stands for one.
        gpu_memory_bytes=_memory_bytes() // max(1, engines.gpu_count),
        ssd_capacity_bytes=stored.ssd_capacity_bytes,
        dram_capacity_bytes=stored.dram_capacity_bytes,
        ssd_read_bytes_per_s=stored.ssd_read_bytes_per_s,
        dram_to_gpu_bytes_per_s=stored.dram_to_gpu_bytes_per_s,
        peer_endpoint=stored.peer_endpoint,
    )


def _host_class(gpus: Sequence[GpuDescription]) -> str:
    """Like machines get like names: `nvidia-h200-x8`, `cpu-2c`."""
    if not gpus:
        return f"cpu-{os.cpu_count()}c"
    name = re.sub(r"[^a-z0-9]+", "-", gpus[0].name.lower()).strip("-")
    return f"{name}-x{len(gpus)}"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    # It drains first, and leaves then.
    stays_s = LEAVE_WITHIN_S + read_settings().drain_on_stop_s
    run_role(serve, name=AGENT, leave_within_s=stays_s)

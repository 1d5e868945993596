"""The control worker: runs workflow code and the control-plane activities. Run as many as you like."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Interceptor, Worker, WorkerDeploymentConfig

from activities.control import Control
from activities.warmth import Warmth
from firstlight.contracts.activities import ControlActivities
from firstlight.contracts.naming import CONTROL_QUEUE
from firstlight.contracts.warmth import WarmthActivities
from firstlight.database.connection import Database
from firstlight.domain.errors import InvalidSettings
from firstlight.launcher.activity_boundaries import boundaries
from firstlight.launcher.activity_figures import ActivityFigures
from firstlight.launcher.fleet_figures import FleetFigures
from firstlight.launcher.metrics_server import role_registry, serving_metrics
from firstlight.launcher.role_process import run_role, unless_stopped
from firstlight.launcher.schema_check import check_schema
from firstlight.launcher.temporal_client import connect, ensure_reconciler
from firstlight.launcher.worker_versions import deployment_config
from firstlight.settings import Settings
from workflows.registry import WORKFLOWS
from workflows.sandbox import runner

log = logging.getLogger(__name__)

# A killed worker's cached runs are offered to others after so long.
STICKY_TIMEOUT = timedelta(seconds=1)
# Enough for a transaction to end. Watches never end by themselves: waiting for them only delays a stop, and
# an activity that is cut off is tried again by whoever polls next.
GRACEFUL_SHUTDOWN = timedelta(milliseconds=300)


def control_worker(
    client: Client, database: Database, settings: Settings, *, beside: Sequence[Interceptor] = ()
) -> Worker:
    """The worker itself, for this process or inside the API's (which saves a start a hop)."""
    warmth = Warmth(database=database, client=client, settings=settings)
    control = Control(database=database, client=client, consolidate_requests=settings.consolidate_requests)
    return worker_of(client, control, warmth, versions=deployment_config(settings), beside=beside)


def worker_of(
    client: Client,
    control: ControlActivities,
    warmth: WarmthActivities,
    *,
    versions: WorkerDeploymentConfig | None = None,
    beside: Sequence[Interceptor] = (),
) -> Worker:
    """`beside` are interceptors beyond those of the client and of tests."""
    return Worker(
        client,
        task_queue=CONTROL_QUEUE,
        workflows=WORKFLOWS,
        activities=[
            control.replan_start,
            control.abandon_start,
            control.record_start,
            control.begin_drain,
            control.finish_instance,
            control.watch_lease,
            control.fail_host,
            control.list_hosts,
            control.mend_host,
            control.serve_on,
            control.finish_migration,
            control.move_off,
            warmth.decide_keep_alive,
            warmth.look_ahead,
            control.evict_instance,
            control.join_migration,
            control.consolidate_fleet,
        ],
        interceptors=[*boundaries(), *beside],
        workflow_runner=runner(),
        # Every host of the fleet holds one slot with its lease watch.
        max_concurrent_activities=2000,
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        max_heartbeat_throttle_interval=timedelta(milliseconds=500),
        default_heartbeat_throttle_interval=timedelta(milliseconds=500),
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        deployment_config=versions,
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set. Raises: InvalidSettings."""
    database = Database(database_url(settings))
    try:
        await check_schema(database_url(settings))
        registry = role_registry()
        async with serving_metrics(settings, registry, gather=FleetFigures(database).gather):
            await _work(settings, database, stop, beside=[ActivityFigures(registry)])
    finally:
        await database.close()
    log.info("control worker stopped")


async def _work(
    settings: Settings, database: Database, stop: asyncio.Event, *, beside: Sequence[Interceptor]
) -> None:
    client = await unless_stopped(connect(settings), stop)
    if client is None:
        return
    async with control_worker(client, database, settings, beside=beside):
        log.info("control worker polls %s", CONTROL_QUEUE)
        await ensure_reconciler(client, every_s=settings.reconcile_every_s)
        await stop.wait()


def database_url(settings: Settings) -> str:
    """Raises: InvalidSettings."""
    if settings.database_url is None:
        raise InvalidSettings(
            "FIRSTLIGHT_DATABASE_URL must name the database (`firstlight up` brings one along)",
            setting="FIRSTLIGHT_DATABASE_URL",
        )
    return settings.database_url


def main() -> None:
    run_role(serve, name="control-worker")

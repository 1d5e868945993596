"""The cluster that `firstlight workflows` works on: as every role finds it, else the local run's own."""

from __future__ import annotations

import asyncio
import getpass
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from firstlight.cli.ending import end_at_once
from firstlight.domain.errors import LaunchError

if TYPE_CHECKING:
    # A heavy import for commands that only print their help.
    from temporalio.client import Client

    from firstlight.database.connection import Database
    from firstlight.settings import Settings

ANSWERS_WITHIN_S = 10.0
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`database` is None where none is named: what needs no rows can still be done."""

    client: Client
    database: Database | None
    settings: Settings


def on_cluster(work: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
    """Run `work` on a connected cluster. Raises: InvalidSettings, LaunchError."""

    from temporalio.service import RPCError

    from firstlight.launcher.temporal_client import refused
    from firstlight.recovery.found import lacks_namespace

    _leave_stdout_to_us()
    end_at_once()

    async def run() -> Answer:
        async with _cluster() as cluster:
            try:
                return await work(cluster)
            except RPCError as error:
                if lacks_namespace(error):
                    raise refused(cluster.settings, error) from error
                raise LaunchError(f"Temporal did not do it: {error.message}") from error

    return asyncio.run(run())


@cache
def _leave_stdout_to_us() -> None:
    """The SDK's core writes log lines there, into a command's JSON; what goes wrong reaches us as errors."""
    from temporalio.runtime import Runtime, TelemetryConfig

    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)), error_if_already_set=False)


@asynccontextmanager
async def _cluster() -> AsyncIterator[Cluster]:
    from firstlight.database.connection import Database
    from firstlight.launcher.temporal_client import connect_within
    from firstlight.rpc.identity import assume

    settings = _settings()
    # Hosts are asked what they hold, and may let in only their own fleet.
    assume(settings.rpc_tls_dir, may_be_plain=settings.rpc_plain)
    database = Database(settings.database_url, pool_size=2) if settings.database_url else None
    try:
        client = await connect_within(settings, within_s=ANSWERS_WITHIN_S, prepares=False)
        yield Cluster(client=client, database=database, settings=settings)
    finally:
        if database is not None:
            await database.close()


def _settings() -> Settings:
    """Settings name the cluster; what they leave open is that of the `firstlight up` of this directory."""
    from firstlight.launcher.run_file import read_run
    from firstlight.settings import read_settings

    settings = read_settings()
    run = read_run(settings.state_dir)
    if run is None or settings.temporal_address is not None:
        return settings
    return settings.model_copy(
        update={
            "temporal_address": run.temporal_address or None,
            "database_url": settings.database_url or run.database_url or None,
            "temporal_ui_url": settings.temporal_ui_url or run.temporal_ui_url or None,
        }
    )


def warn_unrecorded(cluster: Cluster) -> None:
    """Before an act: its line would be in the audit log."""
    if cluster.database is None:
        sys.stderr.write("firstlight: FIRSTLIGHT_DATABASE_URL names no database: this act is not recorded\n")


def actor() -> str:
    """Who asks, for histories and the audit log."""
    return f"cli/{getpass.getuser()}@{socket.gethostname()}"

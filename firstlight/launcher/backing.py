"""Postgres and Temporal of a local run: given ones as they are, else embedded ones kept running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from firstlight.domain.errors import DatabaseUnavailable, FirstlightError, LaunchError, StorageError
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.launcher.machine_checks import check_port, disk_full, free_port, is_about_space
from firstlight.launcher.process_marks import ProcessMark, mark
from firstlight.launcher.processes import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from firstlight.launcher.progress import Steps
from firstlight.launcher.temporal_client import check_answers
from firstlight.launcher.together import together
from firstlight.settings import Settings

LOOPBACK = "127.0.0.1"
# A given Temporal runs already, or somebody must start it.
ANSWERS_WITHIN_S = 10.0
POSTGRES, TEMPORAL = "postgres", "temporal"


class EmbeddedService(Protocol):
    """What both embedded servers offer. `start` is idempotent; `wait_exit` returns when it has ended."""

    @property
    def pid(self) -> int | None: ...
    @property
    def log_path(self) -> Path: ...
    async def start(self) -> str: ...
    async def stop(self) -> None: ...
    async def wait_exit(self) -> object: ...


class _Postgres:
    """The embedded Postgres, its blocking calls in a thread."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self.log_path = server.log_path

    @property
    def pid(self) -> int | None:
        return self._server.pid

    async def start(self) -> str:
        starting = asyncio.ensure_future(asyncio.to_thread(self._server.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: a stop before its end would miss the server it starts.
            await asyncio.gather(starting, return_exceptions=True)
            raise

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)

    async def wait_exit(self) -> None:
        await self._server.wait_exit()


def check_backing_ports(settings: Settings) -> Settings:
    """Ports of the embedded Temporal checked; one of 0 chosen. Raises: PortTaken."""
    if settings.temporal_address is not None:
        return settings
    changes: dict[str, int] = {}
    for name in ("temporal_port", "temporal_ui_port"):
        port: int = getattr(settings, name)
        check_port(LOOPBACK, port, setting=f"FIRSTLIGHT_{name.upper()}")
        if port == 0:
            changes[name] = free_port(LOOPBACK)
    return settings.model_copy(update=changes)


class BackingServices:
    """Started side by side; restarted with back-off when they end; stopped last of all."""

    def __init__(
        self, settings: Settings, *, say: Callable[[str], None], changed: Callable[[], object]
    ) -> None:
        self._settings = settings
        self._say = say
        self._changed = changed
        self._running: dict[str, EmbeddedService] = {}
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self, steps: Steps) -> Settings:
        """Start what is not given; returns settings that name both. Raises: LaunchError, DiskFull."""
        database_url, temporal_address = await together(self._database(steps), self._temporal(steps))
        settings = self._settings
        changes = {"database_url": database_url, "temporal_address": temporal_address}
        if settings.temporal_address is None and settings.temporal_ui_url is None:
            changes["temporal_ui_url"] = f"http://{LOOPBACK}:{settings.temporal_ui_port}"
        return settings.model_copy(update=changes)

    def marks(self) -> dict[str, ProcessMark]:
        """Processes that end with this run; Postgres is its own daemon, which a later run attaches to."""
        service = self._running.get(TEMPORAL)
        found = mark(service.pid) if service and service.pid else None
        return {TEMPORAL: found} if found else {}

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for service in reversed(self._running.values()):
            await service.stop()
        self._running.clear()

    async def _database(self, steps: Steps) -> str:
        from firstlight.database.schema import upgrade

        if (url := self._settings.database_url) is None:
            with steps.step("Postgres"):
                url = await self._start(POSTGRES, _Postgres(EmbeddedPostgres(self._settings.state_dir)))
        with steps.step("database schema"):
            try:
                await asyncio.to_thread(upgrade, url)
            except (DatabaseUnavailable, StorageError) as failure:
                raise self._not_migrated(failure) from failure
        return url

    def _not_migrated(self, failure: FirstlightError) -> FirstlightError:
        if is_about_space(failure.message):
            return disk_full("the database's disk is full")
        if self._settings.database_url is None:
            return failure
        return LaunchError(f"{failure.message}; start it, or mend FIRSTLIGHT_DATABASE_URL")

    async def _temporal(self, steps: Steps) -> str:
        settings = self._settings
        if settings.temporal_address is not None:
            with steps.step(f"Temporal at {settings.temporal_address}"):
                await check_answers(settings, within_s=ANSWERS_WITHIN_S)
            return settings.temporal_address
        with steps.step("Temporal"):
            service = EmbeddedTemporal(
                settings.state_dir,
                port=settings.temporal_port,
                ui_port=settings.temporal_ui_port,
                namespace=settings.temporal_namespace,
            )
            return await self._start(TEMPORAL, service)

    async def _start(self, name: str, service: EmbeddedService) -> str:
        self._running[name] = service
        address = await service.start()
        self._changed()
        self._keepers.append(asyncio.create_task(self._keep(name, service)))
        return address

    async def _keep(self, name: str, service: EmbeddedService) -> None:
        while True:
            await service.wait_exit()
            self._say(f"{name} ended and starts again; see {service.log_path}")
            await _with_backoff(service.start, self._say, name)
            self._changed()


async def _with_backoff(
    start: Callable[[], Awaitable[object]], say: Callable[[str], None], name: str
) -> None:
    """Try for ever: without it nothing new can start, and what runs goes on meanwhile."""
    pause_s = FIRST_BACKOFF_S
    while True:
        try:
            await start()
            return
        except FirstlightError as failure:
            say(f"{name} does not start ({failure.message.splitlines()[0]}); again in {pause_s:.2g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(LONGEST_BACKOFF_S, pause_s * 2)

"""Composition root of the API role: puts real parts together and serves them until told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
import uvloop
from temporalio.client import Client

from api.app import create_app
from api.auth import KeyRing, check_listener
from api.services import Dependencies
from firstlight.database.connection import Database
from firstlight.database.keys_repository import read_stored_keys
from firstlight.domain.errors import InvalidSettings, LaunchError
from firstlight.launcher.api_tls import tls_options
from firstlight.launcher.control_worker import database_url
from firstlight.launcher.open_files import allow_open_files
from firstlight.launcher.role_process import run_role
from firstlight.launcher.schema_check import check_schema
from firstlight.launcher.temporal_client import tls_config
from firstlight.launcher.temporal_context import interceptors
from firstlight.settings import Settings
from gpu_worker.store.sources.dispatch import describe_source

log = logging.getLogger(__name__)

# For a request to follow the connection it comes by; an idle connection holds a stop up for so long.
REQUEST_FOLLOWS_WITHIN_S = 0.5


class ApiServer(uvicorn.Server):
    """Leaves signals to the role's own shell: uvicorn would end the process before we have closed.

    `on_stop` is called before it waits for the answers that go on.
    """

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is here now stays; collections that went through it all would stop every stream for a while.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Whoever has connected by now is answered, also who has not said yet for what."""
        self._on_stop()
        # Connections that wait to be accepted would be reset by the close; a turn of the loop takes them.
        await asyncio.sleep(0.01)
        for server in self.servers:
            server.close()
        deadline_s = time.monotonic() + REQUEST_FOLLOWS_WITHIN_S
        # uvicorn tells nobody of a request; this is at a stop, and soon over.
        while self._has_silent_connections() and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    def _has_silent_connections(self) -> bool:
        """Whether a connection has brought no request yet: uvicorn would close it without a word."""
        return any(getattr(one, "cycle", None) is None for one in self.server_state.connections)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(settings: Settings | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    allow_open_files()
    # Its server has a bound of its own, for answers that go on.
    run_role(serve, name="api", settings=settings, leave_within_s=None)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises: InvalidSettings; LaunchError when the application cannot start."""
    database = Database(database_url(settings), pool_size=10)
    try:
        await check_schema(database_url(settings))
        await check_keys(settings, database)
        app = create_app(
            Dependencies(
                settings=settings,
                database=database,
                temporal=await lazy_client(settings),
                describe=describe_source,
            )
        )
        server = ApiServer(server_config(app, settings), on_stop=app.state.services.leave)
        stopping = asyncio.create_task(_stop(server, stop))
        try:
            await server.serve()
        finally:
            stopping.cancel()
        if not server.started:
            raise LaunchError("the API could not start; its log says why")
    finally:
        await database.close()
    log.info("API stopped")


async def check_keys(settings: Settings, database: Database) -> None:
    """Before the port is opened, so that the reason is the process's last word.

    Raises: InvalidSettings, DatabaseUnavailable.
    """
    keys = KeyRing(settings)
    if not settings.is_loopback() and not keys.is_required:
        async with database.session() as session:
            keys.replace_stored(await read_stored_keys(session))
    check_listener(settings, keys)


# Any ASGI application: uvicorn's own type for it is a union of callables.
def server_config(app: object, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.api_host,
        port=settings.api_port,
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        # uvicorn counts whole seconds.
        timeout_graceful_shutdown=math.ceil(settings.api_drain_s),
        timeout_keep_alive=75,
        **tls_options(settings),
    )


async def lazy_client(settings: Settings) -> Client:
    """A client that connects when it is first used: the API serves warm models without Temporal."""
    if settings.temporal_address is None:
        raise InvalidSettings(
            "FIRSTLIGHT_TEMPORAL_ADDRESS must name the Temporal server (`firstlight up` brings one along)",
            setting="FIRSTLIGHT_TEMPORAL_ADDRESS",
        )
    key = settings.temporal_api_key
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        tls=tls_config(settings),
        api_key=None if key is None else key.get_secret_value(),
        lazy=True,
        interceptors=interceptors(),
    )


async def _stop(server: ApiServer, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True


if __name__ == "__main__":
    main()

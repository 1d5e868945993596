"""/metrics of a role that has no HTTP of its own: a control worker, and the agent that speaks for a GPU host.

Gauges are asked for when somebody looks. A port that is taken costs the figures, never the role.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from firstlight.launcher.metrics_listener import check_metrics_listener, metrics_keys
from firstlight.settings import Settings

log = logging.getLogger(__name__)

Gather = Callable[[], Awaitable[Iterable[Metric]]]
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def role_registry() -> CollectorRegistry:
    """What every role tells: its version, and what its process takes."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Gauge("firstlight_build_info", "Always 1.", ("version",), registry=registry)
    build.labels(version("firstlight")).set(1)
    return registry


@asynccontextmanager
async def serving_metrics(
    settings: Settings, registry: CollectorRegistry, *, gather: Gather
) -> AsyncIterator[str | None]:
    """Serve while the block runs; yields host:port, None when nothing is served.

    Raises: InvalidSettings for an address beyond loopback that would be open to everyone.
    """
    check_metrics_listener(settings)
    if settings.metrics_port is None or (listener := _bound(settings)) is None:
        yield None
        return
    keys = metrics_keys(settings)
    config = uvicorn.Config(
        _Page(registry, gather, keys),
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="metrics")
    where = f"{settings.metrics_host}:{settings.metrics_port}"
    log.info("metrics at http://%s/metrics", where)
    try:
        yield where
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


def _bound(settings: Settings) -> socket.socket | None:
    assert settings.metrics_port is not None
    family = socket.AF_INET6 if ":" in settings.metrics_host else socket.AF_INET
    try:
        return socket.create_server((settings.metrics_host, settings.metrics_port), family=family)
    except OSError as failure:
        log.error(
            "no metrics: cannot listen at %s:%d (%s); FIRSTLIGHT_METRICS_PORT names the port",
            settings.metrics_host,
            settings.metrics_port,
            failure.strerror,
        )
        return None


class _Server(uvicorn.Server):
    """Leaves signals to the role's own shell."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class _Page:
    """One page as an ASGI application: a framework would cost a role its start-up time."""

    registry: CollectorRegistry
    gather: Gather
    keys: tuple[bytes, ...]

    # Any: ASGI's own messages.
    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        status, body = await self._answer(scope)
        headers = [(b"content-type", CONTENT_TYPE), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: dict[str, Any]) -> tuple[int, bytes]:
        if scope["path"] != "/metrics":
            return 404, b"the figures are at /metrics\n"
        if self.keys and not self._is_known(dict(scope["headers"]).get(b"authorization", b"")):
            return 401, b"an API key is needed: send it as 'Authorization: Bearer ...'\n"
        asked = _Asked(tuple(await self.gather()))
        return 200, generate_latest(self.registry) + generate_latest(asked)

    def _is_known(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and any(
            hmac.compare_digest(key.strip(), known) for known in self.keys
        )


@dataclass(frozen=True, slots=True)
class _Asked(Collector):
    metrics: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        return self.metrics

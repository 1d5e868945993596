"""`GET /admin/v1/events`: the console's sections as server-sent events, for as long as the key is good."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console.producer import event_of
from api.web.exchange import Exchange, Sink
from api.web.middleware import grant_of

if TYPE_CHECKING:
    from starlette.types import Scope

    from api.services import Services

# Proxies close what is silent for a minute; the page takes a stream for dead after three of these.
ALIVE_EVERY_S = 10.0
_ALIVE = b": alive\n\n"


def add_events(router: APIRouter, services: Services) -> None:
    # Not in the OpenAPI document: the sections are the page's own, and may change with it.
    @router.get("/events", include_in_schema=False)
    async def events(request: Request) -> Response:
        async def work(sink: Sink) -> None:
            await _send(sink, services, request.scope)

        return Exchange(work)


async def _send(sink: Sink, services: Services, scope: Scope) -> None:
    async with services.console.viewer() as viewer:
        await sink.begin_events()
        await sink.write(event_of("hello", _hello(services)))
        while not viewer.is_over and services.keys.still_allows(grant_of(scope)):
            try:
                async with asyncio.timeout(ALIVE_EVERY_S):
                    events = await viewer.next()
            except TimeoutError:
                events = _ALIVE
            await sink.write(events)
        await sink.end()


def _hello(services: Services) -> dict[str, object]:
    settings = services.settings
    return {
        # Browsers' clocks are off; the page counts from this one.
        "now_unix_s": time.time(),
        "temporal_ui_url": settings.temporal_ui_url,
        "temporal_namespace": settings.temporal_namespace,
    }

"""The application: routes, middleware and error answers around one `Services`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from api.admin.routes import admin_routes
from api.console.files import page_routes
from api.errors import DEFAULT_RETRY_AFTER_S, HttpError, http_error, internal_error
from api.openai.routes import openai_routes
from api.rehearsal import rehearse
from api.services import Dependencies, Services
from api.web.audit_trail import AuditTrail
from api.web.documentation import errors
from api.web.middleware import (
    Answers,
    BodyLimit,
    BodyTooLarge,
    KeyCheck,
    Quota,
    RequestIds,
    body_too_large,
)
from api.web.own_pages import OwnPagesOnly
from api.web.traces import Traces
from firstlight.domain.errors import FirstlightError
from firstlight.telemetry import tracing

logger = logging.getLogger(__name__)

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def create_app(dependencies: Dependencies) -> FastAPI:
    """The API as an ASGI application; its lifespan listens to Postgres and closes what it opened.

    `app.state.services` holds the parts.
    """
    services = Services(dependencies)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await services.open()
            await rehearse(AsyncExitStackMiddleware(app.router), app)
            yield
        finally:
            await services.close()

    app = FastAPI(
        title="Firstlight",
        version="0.1.0",
        summary="OpenAI-compatible inference for many models on few GPUs.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = services
    app.include_router(openai_routes(services))
    app.include_router(admin_routes(services))
    app.include_router(page_routes())
    _add_health(app, services)
    _add_error_answers(app)
    # The last added is the outermost.
    app.add_middleware(AuditTrail, database=services.database)
    app.add_middleware(BodyLimit, limit_bytes=dependencies.body_limit_bytes)
    app.add_middleware(Quota, limits=services.key_limits, usage=services.usage)
    app.add_middleware(OwnPagesOnly)
    app.add_middleware(KeyCheck, keys=services.keys)
    app.add_middleware(Answers, metrics=services.metrics)
    if tracing.is_on():
        app.add_middleware(Traces)
    app.add_middleware(RequestIds)
    return app


def _add_health(app: FastAPI, services: Services) -> None:
    @app.get("/healthz", tags=["Health"], response_model=None)
    async def healthz() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.get(
        "/readyz",
        tags=["Health"],
        response_model=None,
        responses={503: {"description": "Warm models answer; starts would not work now."}},
    )
    async def readyz() -> Response:
        """Routes are known, and Postgres and Temporal answered a moment ago: starts would work."""
        is_ready = services.health.is_ready and services.is_prepared.is_set()
        told = {
            "status": "ready" if is_ready else "not ready",
            "postgres": services.health.postgres.say(),
            "temporal": services.health.temporal.say(),
            "routes": "ok" if services.feed.is_fresh.is_set() else "being read",
        }
        if is_ready:
            return JSONResponse(told)
        # As every 503: when to come again.
        return JSONResponse(told, status_code=503, headers={"retry-after": f"{DEFAULT_RETRY_AFTER_S:.0f}"})

    @app.get(
        "/metrics",
        tags=["Health"],
        response_model=None,
        response_class=PlainTextResponse,
        responses=errors(),
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(services.metrics.exposition(), media_type=_EXPOSITION)


def _add_error_answers(app: FastAPI) -> None:
    @app.exception_handler(FirstlightError)
    async def known(request: Request, error: FirstlightError) -> Response:
        answer = http_error(error)
        if answer.status == 500:
            logger.error("request %s: %s", _id_of(request), error.message, exc_info=error)
        return answer.response()

    @app.exception_handler(BodyTooLarge)
    async def too_large(_: Request, __: BodyTooLarge) -> Response:
        return body_too_large().response()

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        answer = HttpError(error.status_code, message, "not_found" if error.status_code == 404 else None)
        response = answer.response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return HttpError(400, f"{param}: {first['msg']}", "invalid_input", param=param).response()

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        logger.error("request %s ended by a bug", _id_of(request), exc_info=error)
        return internal_error().response()


def _id_of(request: Request) -> str:
    return str(request.state.request_id)

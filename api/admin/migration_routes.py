"""/admin/v1: migrations of instances, and draining of hosts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from api.admin.migration import (
    DrainAnswer,
    MigrateRequest,
    MigrationBegun,
    MigrationList,
    drain,
    migrate,
    undrain,
)
from api.admin.plain import plain
from api.openai.parsing import parse_json, validate
from api.services import Services
from api.web.documentation import body_of, errors
from firstlight.database.migrations_repository import list_migrations

Limit = Annotated[int, Query(ge=1, le=200)]


def add_migrations(router: APIRouter, services: Services) -> None:
    @router.post(
        "/instances/{instance_id}/migrate",
        response_model=None,
        openapi_extra=body_of(MigrateRequest, is_required=False),
        responses={202: {"model": MigrationBegun}, **errors(400, 403, 404, 409, 413, 503)},
    )
    async def migrate_instance(instance_id: str, request: Request) -> Response:
        """Move an instance and its running requests to another host. Their streams do not break."""
        body = await request.body()
        wish = validate(MigrateRequest, parse_json(body) if body else {})
        begun = await migrate(services, instance_id, wish)
        return JSONResponse(begun.model_dump(), status_code=202)

    @router.get(
        "/migrations",
        response_model=None,
        responses={200: {"model": MigrationList}, **errors(400, 403, 503)},
    )
    async def migrations(model: str | None = None, limit: Limit = 20) -> Response:
        """The latest migrations: what moved, how long each step took, and the longest pause."""
        async with services.database.session() as session:
            return JSONResponse(
                {"migrations": plain(await list_migrations(session, model=model, limit=limit))}
            )

    @router.post(
        "/hosts/{host_id}/drain",
        response_model=None,
        responses={202: {"model": DrainAnswer}, **errors(403, 404, 409, 413, 503)},
    )
    async def drain_host(host_id: str) -> Response:
        """Place nothing new on a host, and move what it runs elsewhere. May be repeated."""
        return JSONResponse((await drain(services, host_id)).model_dump(), status_code=202)

    @router.post(
        "/hosts/{host_id}/undrain",
        response_model=None,
        responses={200: {"model": DrainAnswer}, **errors(403, 404, 409, 413, 503)},
    )
    async def undrain_host(host_id: str) -> Response:
        """Put a drained host back into service. May be repeated."""
        return JSONResponse((await undrain(services, host_id)).model_dump())

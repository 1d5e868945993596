"""/admin/v1: models, hosts, instances, starts, decisions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from api.admin.deployment import deploy
from api.admin.estimate_routes import add_estimates
from api.admin.fields import (
    DecisionAnswer,
    DecisionList,
    DeleteAnswer,
    DeployRequest,
    HostList,
    InstanceList,
    ModelAnswer,
    ModelList,
    ScaleRequest,
    StartAnswer,
    StartList,
    StartRequest,
)
from api.admin.keys import add_keys, add_records
from api.admin.migration_routes import add_migrations
from api.admin.plain import plain, with_progress
from api.admin.scaling import scale as change_settings
from api.admin.warming import warm
from api.console.stream import add_events
from api.openai.parsing import parse_json, validate
from api.services import Services
from api.web.documentation import body_of, errors
from firstlight.database.decisions_repository import get_decision, list_decisions
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import list_live_and_ended
from firstlight.database.models_repository import get_model, list_models
from firstlight.database.starts_repository import list_starts

Limit = Annotated[int, Query(ge=1, le=200)]
Ended = Annotated[int, Query(ge=0, le=1000)]


def admin_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/v1", tags=["Administration"])
    _add_models(router, services)
    _add_fleet(router, services)
    add_migrations(router, services)
    add_keys(router, services)
    add_records(router, services)
    add_estimates(router, services)
    add_events(router, services)
    return router


def _add_models(router: APIRouter, services: Services) -> None:
    @router.post(
        "/models",
        response_model=None,
        openapi_extra=body_of(DeployRequest),
        responses={
            200: {"model": ModelAnswer, "description": "Deployed already, with the same settings."},
            201: {"model": ModelAnswer, "description": "Deployed."},
            **errors(400, 403, 409, 413, 503),
        },
    )
    async def deploy_model(request: Request) -> Response:
        """Make a model known. No GPU is taken and no weight is fetched until it is asked for."""
        wish = validate(DeployRequest, parse_json(await request.body()))
        record, is_new = await deploy(
            wish, describe=services.describe, database=services.database, settings=services.settings
        )
        await services.catalog.reload(record.name)
        return JSONResponse(plain(record), status_code=201 if is_new else 200)

    @router.get("/models", response_model=None, responses={200: {"model": ModelList}, **errors(403, 503)})
    async def all_models() -> Response:
        """All models, those being deleted included."""
        async with services.database.session() as session:
            return JSONResponse({"models": plain(await list_models(session))})

    @router.get(
        "/models/{name}",
        response_model=None,
        responses={200: {"model": ModelAnswer}, **errors(403, 404, 503)},
    )
    async def one_model(name: str) -> Response:
        """One model."""
        async with services.database.session() as session:
            return JSONResponse(plain(await get_model(session, name)))

    @router.delete(
        "/models/{name}",
        response_model=None,
        responses={
            200: {"model": DeleteAnswer, "description": "It is gone."},
            202: {"model": DeleteAnswer, "description": "Its instances are ending; then it is gone."},
            **errors(403, 404, 413, 503),
        },
    )
    async def delete_model(name: str) -> Response:
        """Take a model out of service and end its instances. May be repeated."""
        live = await services.deletions.delete(name)
        state = "deleting" if live else "deleted"
        return JSONResponse(
            {"name": name, "state": state, "live_instances": live}, status_code=202 if live else 200
        )

    @router.post(
        "/models/{name}/scale",
        response_model=None,
        openapi_extra=body_of(ScaleRequest),
        responses={200: {"model": ModelAnswer}, **errors(400, 403, 404, 409, 413, 503)},
    )
    async def scale(name: str, request: Request) -> Response:
        """Change what is given, leave the rest."""
        wish = validate(ScaleRequest, parse_json(await request.body()))
        return JSONResponse(plain(await change_settings(services, name, wish)))

    @router.post(
        "/models/{name}/start",
        response_model=None,
        openapi_extra=body_of(StartRequest, is_required=False),
        responses={
            200: {"model": StartAnswer, "description": "It is ready."},
            202: {"model": StartAnswer, "description": "It is on its way."},
            **errors(400, 403, 404, 413, 429, 503),
        },
    )
    async def start_model(name: str, request: Request) -> Response:
        """Start an instance now, if none runs, and say what was decided."""
        body = await request.body()
        wish = validate(StartRequest, parse_json(body) if body else {})
        answer = await warm(services, name, wait=wish.wait, request_id=request.state.request_id)
        return JSONResponse(answer, status_code=200 if answer["state"] == "ready" else 202)


def _add_fleet(router: APIRouter, services: Services) -> None:
    @router.get("/hosts", response_model=None, responses={200: {"model": HostList}, **errors(403, 503)})
    async def hosts() -> Response:
        """GPU hosts: state, GPUs and who holds them, tiers, measured bandwidths."""
        async with services.database.session() as session:
            return JSONResponse({"hosts": plain(await list_hosts(session))})

    @router.get(
        "/instances", response_model=None, responses={200: {"model": InstanceList}, **errors(400, 403, 503)}
    )
    async def instances(model: str | None = None, ended: Ended = 50) -> Response:
        """All instances that live and the latest `ended` of those that have ended, newest first."""
        async with services.database.session() as session:
            found = await list_live_and_ended(session, model=model, ended=ended)
        return JSONResponse({"instances": [with_progress(one, services.progress) for one in found]})

    @router.get(
        "/starts", response_model=None, responses={200: {"model": StartList}, **errors(400, 403, 503)}
    )
    async def starts(model: str | None = None, limit: Limit = 20, candidates: bool = True) -> Response:
        """The latest starts: predicted beside actual, phase by phase. `candidates=false` leaves those out."""
        async with services.database.session() as session:
            found = await list_starts(session, model=model, limit=limit, with_candidates=candidates)
        return JSONResponse({"starts": plain(found)})

    @router.get(
        "/decisions", response_model=None, responses={200: {"model": DecisionList}, **errors(400, 403, 503)}
    )
    async def decisions(model: str | None = None, limit: Limit = 20) -> Response:
        """What the scheduler decided lately, also where nothing was started."""
        async with services.database.session() as session:
            found = await list_decisions(session, model=model, limit=limit)
        return JSONResponse({"decisions": plain(found)})

    @router.get(
        "/decisions/{decision_id}",
        response_model=None,
        responses={200: {"model": DecisionAnswer}, **errors(403, 404, 503)},
    )
    async def decision(decision_id: str) -> Response:
        """One decision with every candidate: its estimate, or why it could not be."""
        async with services.database.session() as session:
            return JSONResponse(plain(await get_decision(session, decision_id)))

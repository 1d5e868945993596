"""/admin/v1: what would be decided and why, and how far estimates were off."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from api.admin.estimates import EstimateErrorsAnswer, ExplanationAnswer, explain
from api.admin.plain import plain
from api.services import Services
from api.web.documentation import errors
from firstlight.database.estimate_errors import read_estimate_errors

Last = Annotated[int, Query(ge=1, le=1000)]


def add_estimates(router: APIRouter, services: Services) -> None:
    @router.get(
        "/models/{name}/explain",
        response_model=None,
        responses={200: {"model": ExplanationAnswer}, **errors(403, 404, 409, 503)},
    )
    async def explain_model(name: str) -> Response:
        """What a start of this model would be answered now, and every host term by term. Changes nothing."""
        return JSONResponse((await explain(services, name)).model_dump())

    @router.get(
        "/estimates",
        response_model=None,
        responses={200: {"model": EstimateErrorsAnswer}, **errors(400, 403, 503)},
    )
    async def estimates(model: str | None = None, last: Last = 20) -> Response:
        """Estimated beside actual of the last starts of each model, host and tier, and of the last moves."""
        async with services.database.session() as session:
            found = await read_estimate_errors(session, model=model, last=last)
        return JSONResponse(plain(found))

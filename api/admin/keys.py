"""API keys by the admin API: made, listed, revoked; what they used; and who did what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from api.admin.plain import plain
from api.auth import hash_of, new_key
from api.openai.parsing import parse_json, validate
from api.web.documentation import body_of, errors
from firstlight.database.keys_repository import (
    create_key,
    list_audit,
    list_keys,
    read_stored_keys,
    revoke_key,
)
from firstlight.database.records import ApiKeyRecord
from firstlight.database.usage_repository import list_usage
from firstlight.domain.errors import NotFound

if TYPE_CHECKING:
    from api.services import Services

Limit = Annotated[int, Query(ge=1, le=1000)]
Since = Annotated[float, Query(ge=0, le=4_102_444_800)]
A_DAY_S = 86400.0


class KeyRequest(BaseModel):
    """A limit or an end that is not given is none. Limits count in each API process for itself."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    scope: str = Field(default="inference", pattern="^(inference|admin)$")
    expires_in_s: float | None = Field(default=None, gt=0, le=3.2e9)
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    max_concurrent: int | None = Field(default=None, ge=1, le=1_000_000)


class KeyAnswer(BaseModel):
    key_id: str
    name: str
    scope: str
    created_at_unix_s: float
    expires_at_unix_s: float | None
    revoked_at_unix_s: float | None
    requests_per_minute: int | None
    max_concurrent: int | None


class NewKeyAnswer(KeyAnswer):
    """`key` is shown here and never again."""

    key: str


class KeyList(BaseModel):
    keys: list[KeyAnswer]


class UsageRow(BaseModel):
    key_id: str
    model: str
    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int


class UsageList(BaseModel):
    usage: list[UsageRow]


class AuditLine(BaseModel):
    at_unix_s: float
    actor: str
    act: str
    subject: str
    detail: dict[str, object]


class AuditList(BaseModel):
    audit: list[AuditLine]


def add_keys(router: APIRouter, services: Services) -> None:
    @router.post(
        "/keys",
        response_model=None,
        openapi_extra=body_of(KeyRequest),
        responses={201: {"model": NewKeyAnswer}, **errors(400, 403, 409, 413, 503)},
    )
    async def make_key(request: Request) -> Response:
        """Make an API key. The answer is the only place it is ever shown."""
        wish = validate(KeyRequest, parse_json(await request.body()))
        key = new_key()
        async with services.database.transaction() as session:
            record = await create_key(
                session,
                name=wish.name,
                key_hash=hash_of(key),
                scope=wish.scope,
                expires_at_unix_s=time.time() + wish.expires_in_s if wish.expires_in_s else None,
                requests_per_minute=wish.requests_per_minute,
                max_concurrent=wish.max_concurrent,
            )
        await _reread(services)
        return JSONResponse({**key_row(record), "key": key}, status_code=201)

    @router.get("/keys", response_model=None, responses={200: {"model": KeyList}, **errors(403, 503)})
    async def all_keys() -> Response:
        """All keys, ended ones included, newest first. Those of the settings are not among them."""
        async with services.database.session() as session:
            return JSONResponse({"keys": [key_row(row) for row in await list_keys(session)]})

    @router.delete(
        "/keys/{key_id}",
        response_model=None,
        responses={200: {"model": KeyAnswer}, **errors(403, 404, 413, 503)},
    )
    async def end_key(key_id: str) -> Response:
        """Revoke a key: here at once, by every other API process within seconds. May be repeated."""
        async with services.database.transaction() as session:
            await revoke_key(session, key_id)
            found = [row for row in await list_keys(session) if row.key_id == key_id]
        if not found:
            raise NotFound(f"there is no key {key_id!r}", key_id=key_id)
        await _reread(services)
        return JSONResponse(key_row(found[0]))


def add_records(router: APIRouter, services: Services) -> None:
    @router.get("/usage", response_model=None, responses={200: {"model": UsageList}, **errors(400, 403, 503)})
    async def usage(key_id: str | None = None, since_unix_s: Since | None = None) -> Response:
        """What each key has used of each model: since then, in whole hours; a day without it."""
        await services.usage.write()
        since = time.time() - A_DAY_S if since_unix_s is None else since_unix_s
        async with services.database.session() as session:
            found = await list_usage(session, since_unix_s=since, key_id=key_id)
        return JSONResponse({"usage": plain(found)})

    @router.get("/audit", response_model=None, responses={200: {"model": AuditList}, **errors(400, 403, 503)})
    async def audit_log(
        subject: str | None = None,
        actor: str | None = None,
        since_unix_s: Since | None = None,
        limit: Limit = 100,
    ) -> Response:
        """Who did what, newest first."""
        async with services.database.session() as session:
            found = await list_audit(
                session, subject=subject, actor=actor, since_unix_s=since_unix_s, limit=limit
            )
        return JSONResponse({"audit": plain(found)})


async def _reread(services: Services) -> None:
    """What this process admits changes with the answer, not with its next look."""
    async with services.database.session() as session:
        services.keys.replace_stored(await read_stored_keys(session))


def key_row(record: ApiKeyRecord) -> dict[str, object]:
    """Without the hash: it is nobody's business."""
    return {
        "key_id": record.key_id,
        "name": record.name,
        "scope": record.scope,
        "created_at_unix_s": record.created_at_unix_s,
        "expires_at_unix_s": record.expires_at_unix_s,
        "revoked_at_unix_s": record.revoked_at_unix_s,
        "requests_per_minute": record.requests_per_minute,
        "max_concurrent": record.max_concurrent,
    }

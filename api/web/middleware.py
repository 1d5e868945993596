"""Plain ASGI layers around the application: request id, key check, body limit, counting of answers.

Each is a function of three messages; a layer with a task of its own per request would cost milliseconds.
"""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import ADMIN, Grant, KeyRing
from api.errors import HttpError
from api.key_limits import KeyLimits, Standing
from api.metrics import Metrics
from api.usage import ANY_MODEL, UsageRecorder
from firstlight.database.usage_repository import Usage
from firstlight.domain.errors import DatabaseUnavailable
from firstlight.telemetry.ids import bind

REQUEST_ID = b"x-request-id"
_GOOD_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# Anyone may ask whether the process lives; what it serves and how it does is for holders of a key.
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/console"})
# The console's page holds nothing but itself; what it shows it asks for with a key.
_OPEN_FOLDER = "/console/"
_UNKNOWN = HttpError(
    503,
    "whether a key is needed is in Postgres, which has not answered yet",
    DatabaseUnavailable.code,
    retry_after_s=1.0,
)


def header_of(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


class RequestIds:
    """Takes the caller's X-Request-Id or makes one; gives it back with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header_of(scope, REQUEST_ID)
        request_id = given if given and _GOOD_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}".encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        # Requests are tasks of their own: no other sees it.
        bind(request_id=request_id.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (REQUEST_ID, request_id)]}
            await send(message)

        await self._app(scope, receive, send_with_id)


class Answers:
    """Counts answers by route pattern and status; paths that no route knows share one label."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                pattern = getattr(scope.get("route"), "path", "other")
                self._metrics.answers.labels(pattern, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, send_counted)


class KeyCheck:
    """401 without a known key, 403 for an admin route with a key for inference only.

    503 while nobody knows whether a key is needed: an API that starts while Postgres is away opens no door.

    `scope["state"]["grant"]` is the key's afterwards, where a key was asked for.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> HttpError | None:
        if _is_open(scope["path"]):
            return None
        if not self._keys.is_known:
            return _UNKNOWN
        if not self._keys.is_required:
            return None
        scheme, _, key = (header_of(scope, b"authorization") or b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return HttpError(
                401, "an API key is needed: send it as 'Authorization: Bearer …'", "missing_api_key"
            )
        grant = self._keys.find(key.strip())
        if grant is None:
            return HttpError(401, "the API key is not known, or no longer", "invalid_api_key")
        if scope["path"].startswith("/admin/") and grant.scope != ADMIN:
            return HttpError(403, "this API key is for inference, not for administration", "forbidden")
        scope.setdefault("state", {})["grant"] = grant
        return None


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def grant_of(scope: Scope) -> Grant | None:
    """None where no key was asked for."""
    found: Grant | None = scope.get("state", {}).get("grant")
    return found


class Quota:
    """429 for a key that asks more often, or more at once, than it may; counts what it turns away."""

    def __init__(self, app: ASGIApp, *, limits: KeyLimits, usage: UsageRecorder) -> None:
        self._app = app
        self._limits = limits
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        grant = grant_of(scope) if scope["type"] == "http" else None
        if grant is None or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        standing = self._limits.enter(grant)
        if standing.refusal is not None:
            self._usage.note(grant.key_id, ANY_MODEL, Usage(refused=1))
            refusal = HttpError(
                429, standing.refusal, "rate_limit_exceeded", retry_after_s=standing.retry_after_s
            )
            await refusal.response()(scope, receive, _told(send, grant, standing))
            return
        try:
            await self._app(scope, receive, _told(send, grant, standing))
        finally:
            self._limits.leave(grant)


def _told(send: Send, grant: Grant, standing: Standing) -> Send:
    """Answers say how many requests are left, in the headers OpenAI's clients know."""
    if standing.remaining is None:
        return send
    headers = [
        (b"x-ratelimit-limit-requests", str(grant.requests_per_minute).encode()),
        (b"x-ratelimit-remaining-requests", str(standing.remaining).encode()),
    ]

    async def send_with_standing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with_standing


class BodyLimit:
    """413 for a body larger than `limit_bytes`, by its announced length or as it comes."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = header_of(scope, b"content-length") or b"0"
        if not announced.isdigit() or int(announced) > self._limit_bytes:
            await body_too_large().response()(scope, receive, send)
            return
        taken = 0

        async def receive_within() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit_bytes:
                raise BodyTooLarge
            return message

        await self._app(scope, receive_within, send)


class BodyTooLarge(Exception):
    """Raised while the body is read, so before any answer has begun; the application answers it."""


def body_too_large() -> HttpError:
    return HttpError(413, "the body of the request is too large", "body_too_large")

"""Every administrative act is in the audit log before it is done: no act without its line.

An act that was refused or failed gets a second line with its status.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import http_error
from api.web.middleware import grant_of
from firstlight.database.connection import Database
from firstlight.database.keys_repository import audit
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)

ADMIN_PREFIX = "/admin/v1/"
READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Of a body, for reading; a log is no archive.
LONGEST_BODY = 4096
# Whoever acts where no key is asked for: someone on this machine.
NOBODY = "local"


class AuditTrail:
    """Innermost: it sees acts that a key allows and whose bodies are not too large."""

    def __init__(self, app: ASGIApp, *, database: Database) -> None:
        self._app = app
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_act = scope["type"] == "http" and scope["path"].startswith(ADMIN_PREFIX)
        if not is_act or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        body = await _whole_body(receive)
        try:
            await self._write(scope, {"body": _readable(body)})
        except FirstlightError as error:
            # Not written down, so not done.
            await http_error(error).response()(scope, receive, send)
            return
        status = 0
        is_given = False

        async def receive_again() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not 200 <= status < 400:
                    # Before its answer: who has read that an act failed finds it in the log.
                    await self._write_failure(scope, status)
            await send(message)

        try:
            await self._app(scope, receive_again, send_noting)
        finally:
            if status == 0:
                await self._write_failure(scope, status)

    async def _write(self, scope: Scope, detail: dict[str, Any]) -> None:
        grant = grant_of(scope)
        async with self._database.transaction() as session:
            await audit(
                session,
                actor=grant.key_id if grant is not None else NOBODY,
                act=f"{scope['method']} {scope['path']}",
                subject=subject_of(scope["path"]),
                detail={"request_id": scope["state"]["request_id"], **detail},
            )

    async def _write_failure(self, scope: Scope, status: int) -> None:
        try:
            await self._write(scope, {"status": status or "the connection ended"})
        except FirstlightError as error:
            logger.warning("the end of %s %s was not audited: %s", scope["method"], scope["path"], error)


def subject_of(path: str) -> str:
    """`models/qwen` of `/admin/v1/models/qwen`, with the kind in the singular as elsewhere: `model/qwen`."""
    kind, slash, rest = path.removeprefix(ADMIN_PREFIX).partition("/")
    return f"{kind.removesuffix('s')}{slash}{rest}"


async def _whole_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


# Any: JSON.
def _readable(body: bytes) -> Any:
    try:
        found = json.loads(body[:LONGEST_BODY]) if body else None
    except ValueError:
        return f"{len(body)} bytes"
    return found

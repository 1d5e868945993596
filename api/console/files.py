"""`/console`: the page and its files, from memory, under a policy that lets nothing in from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

# Scripts, styles, connections: our own or none. No text becomes markup (trusted types). Nobody frames us.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again at every visit, so that a page never meets the scripts of another release.
    "cache-control": "no-cache",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    body: bytes
    media_type: str
    etag: str


def load_page() -> dict[str, PageFile]:
    """Every file of the page by its name."""
    return {
        found.name: _file(found.name, found.read_bytes())
        for found in files("api.console").joinpath("page").iterdir()
        if found.name.rpartition(".")[2] in _TYPES
    }


def page_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    page = load_page()

    @router.get("/console")
    async def index(request: Request) -> Response:
        return _answer(request, page["index.html"])

    @router.get("/console/{name}")
    async def file(request: Request, name: str) -> Response:
        if name not in page:
            raise HTTPException(404, "the console has no such file")
        return _answer(request, page[name])

    return router


def _file(name: str, body: bytes) -> PageFile:
    return PageFile(body, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _answer(request: Request, found: PageFile) -> Response:
    headers = {**HEADERS, "etag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)

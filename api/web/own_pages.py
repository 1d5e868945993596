"""Pages of other sites administer nothing: without keys, a browser's word alone tells them apart."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import HttpError
from api.web.middleware import header_of

# Browsers send it with every request and let no page change it; other clients do not send it.
_WHO_ASKS = b"sec-fetch-site"
_FOREIGN = frozenset({b"cross-site", b"same-site"})


class OwnPagesOnly:
    """403 for an admin route that another site's page asks for: it would act with this user's reach.

    Such a page cannot send a key, but where none is asked for, a form or a script of any page that somebody
    on this machine opens could deploy and drain.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_admin = scope["type"] == "http" and scope["path"].startswith("/admin/")
        if is_admin and header_of(scope, _WHO_ASKS) in _FOREIGN:
            refusal = HttpError(403, "a page of another site may not administer this server", "forbidden")
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

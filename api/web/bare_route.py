"""Routes of the warm path: documented as FastAPI's are, called without what FastAPI does for parameters."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response


class BareRoute(APIRoute):
    """For endpoints whose one parameter is the request: nothing is resolved, no body read ahead of them."""

    # Any: what a coroutine yields and is sent is asyncio's own affair.
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint

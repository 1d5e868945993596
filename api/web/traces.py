"""The server's span of every HTTP request, joined to its caller's trace. Not there when traces are off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstlight.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# W3C's trace context alone: a client's baggage would travel on to every role.
_CARRIED = (b"traceparent", b"tracestate")
# Asked by machines every few seconds.
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})


class Traces:
    """Paths are told as routes and without their queries, which may hold anything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        sent = {key.decode(): value.decode("latin-1") for key, value in scope["headers"] if key in _CARRIED}
        told = {
            "http.request.method": scope["method"],
            "url.scheme": scope["scheme"],
            "firstlight.request_id": scope["state"]["request_id"],
        }
        with tracing.span(scope["method"], kind="server", attributes=told, carrier=sent) as span:

            async def send_noting(message: Message) -> None:
                if span is not None and message["type"] == "http.response.start":
                    _note(span, scope, message["status"])
                await send(message)

            await self._app(scope, receive, send_noting)


def _note(span: Span, scope: Scope, status: int) -> None:
    """Not on the current span: an answer may be sent from within the span of its inference."""
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
    if (pattern := getattr(scope.get("route"), "path", None)) is not None:
        span.set_attribute("http.route", pattern)
        span.update_name(f"{scope['method']} {pattern}")

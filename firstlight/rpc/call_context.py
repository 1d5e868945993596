"""What crosses a gRPC call beside its message: the ids for log lines, and the trace it belongs to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from firstlight.telemetry import tracing
from firstlight.telemetry.ids import REQUEST_ID, WORKFLOW_ID, bind, bound

# Names of gRPC metadata, which are lower case; W3C's traceparent and tracestate travel by their own.
_CARRIED = {REQUEST_ID: "x-request-id", WORKFLOW_ID: "firstlight-workflow-id"}
Metadata = tuple[tuple[str, str], ...]


def call_metadata() -> Metadata | None:
    """For a call that is made now; None when there is nothing to say."""
    ids = bound()
    rows = [(key, ids[name]) for name, key in _CARRIED.items() if name in ids]
    return (*rows, *tracing.carrier().items()) or None


def trace_metadata() -> Metadata | None:
    """The trace alone, for a call whose message names its request: nothing, at no cost, when it is off."""
    return tuple(tracing.carrier().items()) if tracing.is_on() else None


if TYPE_CHECKING:
    # Any: as below. Generic for its stubs alone.
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor


class Incoming(_Interceptor):
    """Binds the ids that came with a call for as long as it is served; a span of it, if it is traced."""

    # Any: grpc's own types of handlers, generic in messages that nobody looks at here.
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        told = {str(key): str(value) for key, value in handler_call_details.invocation_metadata or ()}
        # Every call is served in a task of its own, which this runs in: it ends with the call.
        bind(**{name: told[key] for name, key in _CARRIED.items() if key in told})
        handler = await continuation(handler_call_details)
        # Who polls us without a trace would fill the collector with spans of a second each.
        if handler is None or not tracing.is_on() or "traceparent" not in told:
            return handler
        return _spanned(handler, str(handler_call_details.method), told)


# Any: as above.
def _spanned(handler: Any, method: str, carrier: dict[str, str]) -> Any:
    service, _, name = method.strip("/").rpartition("/")
    named: dict[str, Any] = {
        "name": f"{service}/{name}",
        "kind": "server",
        "attributes": {"rpc.system.name": "grpc", "rpc.method": f"{service}/{name}"},
        "carrier": carrier,
    }

    async def answer(serve: Callable[[Any, Any], Awaitable[Any]], request: Any, context: Any) -> Any:
        with tracing.span(**named):
            return await serve(request, context)

    async def unary_unary(request: Any, context: Any) -> Any:
        return await answer(handler.unary_unary, request, context)

    async def stream_unary(requests: Any, context: Any) -> Any:
        return await answer(handler.stream_unary, requests, context)

    async def unary_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        with tracing.span(**named):
            async with aclosing(handler.unary_stream(request, context)) as messages:
                async for message in messages:
                    yield message

    codecs = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(stream_unary, **codecs)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(unary_stream, **codecs)
    return grpc.unary_unary_rpc_method_handler(unary_unary, **codecs)

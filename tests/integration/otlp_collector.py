"""A collector that speaks OTLP over gRPC, in a thread of the test's own process; it keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """One span, with the service that sent it. Ids in hexadecimal; an empty parent is none."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any] = field(compare=False)


class Collector(TraceServiceServicer):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[SeenSpan] = []
        self.raw: list[bytes] = []

    # Any: grpc's context, which is not looked at.
    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        with self._lock:
            self.raw.append(request.SerializeToString())
            for resource in request.resource_spans:
                of = _values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self._spans += [
                        SeenSpan(
                            service=str(of["service.name"]),
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            attributes=_values(span.attributes),
                        )
                        for span in scope.spans
                    ]
        return ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[SeenSpan]:
        with self._lock:
            return [span for span in self._spans if span.trace_id == trace_id]

    def spans(self) -> list[SeenSpan]:
        with self._lock:
            return list(self._spans)


# Any: attribute values are of several types.
def _values(attributes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind) if kind else None
        found[attribute.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector, and the URL it is reached at."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(0.5).wait()

"""OpenTelemetry's SDK, set up to send spans by OTLP. Imported only when spans are wanted."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from firstlight.telemetry.tracing import Attributes

_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}


class Exporting:
    """One process's provider. Sampling, batching, headers and TLS follow the OTEL_* variables."""

    def __init__(self, *, role: str, instance: str) -> None:
        self._provider = TracerProvider(resource=_resource(role, instance))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._propagator = TraceContextTextMapPropagator()
        self.tracer = self._provider.get_tracer("firstlight", version("firstlight"))

    def begin(
        self, name: str, kind: str, attributes: Attributes | None, carrier: Mapping[str, str] | None
    ) -> AbstractContextManager[Span]:
        return self.tracer.start_as_current_span(
            name,
            context=None if carrier is None else self._propagator.extract(carrier),
            kind=_KINDS[kind],
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        )

    def add_past(self, name: str, began_unix_s: float, ended_unix_s: float, found: Attributes | None) -> None:
        span = self.tracer.start_span(name, start_time=round(began_unix_s * 1e9), attributes=found)
        span.end(round(ended_unix_s * 1e9))

    def annotate(self, attributes: Attributes) -> None:
        trace.get_current_span().set_attributes(attributes)

    def fail(self, span: Span, kind: str, message: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, message))

    def inject(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier

    def ids(self) -> Mapping[str, str]:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        return {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }

    def close(self) -> None:
        self._provider.shutdown()


def _resource(role: str, instance: str) -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come on top."""
    return Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or f"firstlight-{role}",
            "service.namespace": "firstlight",
            "service.version": version("firstlight"),
            "service.instance.id": instance or f"{socket.gethostname()}-{os.getpid()}",
            "process.pid": os.getpid(),
        }
    )

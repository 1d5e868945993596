"""Spans of OpenTelemetry, if this process was given a place to send them; else nothing, at no cost.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set: the standard's own
variables, which its SDK reads by itself, and so no settings of ours. Off, nothing of it is imported.
No span carries a prompt, an answer, a key or a URL's query.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from firstlight.domain.errors import FirstlightError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Kind = Literal["internal", "server", "client"]
Attributes = Mapping[str, str | int | float | bool | tuple[str, ...]]
# A collector that does not answer must not hold up the end of a process for longer.
FLUSH_WITHIN_S = 1.0

# Any: the types of a package that is there only with the extra `otel`.
_sdk: Any = None
_OFF: AbstractContextManager[None] = nullcontext()


def is_wanted() -> bool:
    """Whether the environment names a place to send spans to."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(os.environ.get(name) for name in ENDPOINTS)


def is_on() -> bool:
    return _sdk is not None


def prepare() -> None:
    """Import what `start` needs, for a process whose forks will call it. Starts no thread."""
    if is_wanted():
        _exporting()


def start(role: str, *, instance: str = "") -> None:
    """Begin to export spans of this process, if that is wanted. Not before a fork: it starts a thread."""
    global _sdk
    if is_wanted() and _sdk is None and (exporting := _exporting()) is not None:
        _sdk = exporting.Exporting(role=role, instance=instance)


# Any: the module, or None.
def _exporting() -> Any:
    try:
        from firstlight.telemetry import exporting
    except ImportError as missing:
        log.warning('no traces: %s is not installed; `pip install "firstlight[otel]"`', missing.name)
        return None
    return exporting


def stop() -> None:
    """Send what is left, for at most `FLUSH_WITHIN_S`."""
    global _sdk
    if _sdk is None:
        return
    sdk, _sdk = _sdk, None
    # In a thread that the process need not wait for: the exporter retries for longer than we live.
    closing = threading.Thread(target=sdk.close, daemon=True)
    closing.start()
    closing.join(FLUSH_WITHIN_S)


def span(
    name: str,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    carrier: Mapping[str, str] | None = None,
) -> AbstractContextManager[Span | None]:
    """A span around a block, current in it; None when off. `carrier`: what the caller sent of its trace."""
    if _sdk is None:
        return _OFF
    return _current(name, kind, attributes, carrier)


@contextmanager
def _current(
    name: str, kind: Kind, attributes: Attributes | None, carrier: Mapping[str, str] | None
) -> Iterator[Span]:
    with _sdk.begin(name, kind, attributes, carrier) as begun:
        try:
            yield begun
        except Exception as failure:
            _sdk.fail(begun, type(failure).__name__, _message(failure))
            raise


def _message(failure: Exception) -> str:
    """Our own sentences are shown to clients too; others may quote anything."""
    return failure.message if isinstance(failure, FirstlightError) else ""


def past(name: str, *, began_s: float, ended_s: float, attributes: Attributes | None = None) -> None:
    """A child of the current span that is over; times are `time.monotonic()` seconds."""
    if _sdk is not None:
        to_unix_s = time.time() - time.monotonic()
        _sdk.add_past(name, began_s + to_unix_s, ended_s + to_unix_s, attributes)


def annotate(attributes: Attributes) -> None:
    """Add to the current span. Ask `is_on` first where working them out costs anything."""
    if _sdk is not None:
        _sdk.annotate(attributes)


def carrier() -> Mapping[str, str]:
    """What to send along with a call, so that its spans join this trace; empty when off."""
    return {} if _sdk is None else _sdk.inject()


def current_ids() -> Mapping[str, str]:
    """trace_id and span_id of the current span, in hexadecimal; empty without one."""
    return {} if _sdk is None else _sdk.ids()


# Any: an interceptor of temporalio, which this room does not know.
def tracer() -> Any:
    """OpenTelemetry's own tracer, for a library that asks for one; None when off."""
    return None if _sdk is None else _sdk.tracer

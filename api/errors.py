"""Our errors as HTTP answers: the one place that knows both.

Bodies have OpenAI's shape: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from starlette.responses import Response

from firstlight.domain import errors

# First match wins, so a kind stands before those above it in the tree.
_STATUS: tuple[tuple[type[errors.FirstlightError], int], ...] = (
    (errors.InvalidInput, 400),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.QueueFull, 429),
    (errors.Overloaded, 503),
    (errors.SourceUnreachable, 503),
    (errors.PeerUnreachable, 503),
    (errors.SourceError, 400),
    (errors.CheckpointError, 503),
    (errors.StorageError, 503),
    (errors.GpuError, 503),
    (errors.EngineError, 503),
    (errors.Cancelled, 503),
)
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
DEFAULT_RETRY_AFTER_S = 2.0
LONGEST_RETRY_AFTER_S = 120.0


@dataclass(frozen=True, slots=True)
class HttpError:
    """One answer, ready to be sent."""

    status: int
    message: str
    code: str | None
    param: str | None = None
    retry_after_s: float | None = None

    def body(self) -> bytes:
        return json.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": _TYPES.get(self.status, "internal_error"),
                    "param": self.param,
                    "code": self.code,
                }
            },
            ensure_ascii=False,
        ).encode("utf-8", errors="replace")

    def headers(self) -> dict[str, str]:
        found = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(max(1, math.ceil(min(self.retry_after_s, LONGEST_RETRY_AFTER_S))))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found

    def response(self) -> Response:
        return Response(
            self.body(), status_code=self.status, headers=self.headers(), media_type="application/json"
        )


def http_error(error: errors.FirstlightError) -> HttpError:
    """The answer for an error of our tree; 500 for one that should have been handled before."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    param = error.fields.get("param")
    return HttpError(
        status=status,
        message=error.message,
        code=error.code,
        param=param if isinstance(param, str) else _param_of(error),
        retry_after_s=_retry_after_s(error, status),
    )


def internal_error() -> HttpError:
    """For a bug: says nothing of its cause, which is in the log under the request's id."""
    return HttpError(500, "the server failed to answer; the log has the details", "internal")


def _param_of(error: errors.FirstlightError) -> str | None:
    if isinstance(error, errors.UnknownModel):
        return "model"
    if isinstance(error, errors.InvalidName):
        return "name"
    if isinstance(error, errors.SourceError):
        return "source"
    return None


def _retry_after_s(error: errors.FirstlightError, status: int) -> float | None:
    if status not in (429, 503):
        return None
    given = error.fields.get("retry_after_s")
    return float(given) if isinstance(given, int | float) else DEFAULT_RETRY_AFTER_S

"""The ids that the work under way concerns, for every log line it writes: request, workflow, activity.

They belong to the current task and to all that it starts, as context variables do.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

REQUEST_ID = "request_id"
WORKFLOW_ID = "workflow_id"

_NONE: Mapping[str, str] = MappingProxyType({})
_bound: ContextVar[Mapping[str, str]] = ContextVar("firstlight_ids", default=_NONE)


def bind(**ids: str) -> None:
    """Add ids for the rest of the current task; empty ones say nothing."""
    _bound.set({**_bound.get(), **{name: value for name, value in ids.items() if value}})


def bound() -> Mapping[str, str]:
    """The ids of the work under way, in the order they were bound."""
    return _bound.get()

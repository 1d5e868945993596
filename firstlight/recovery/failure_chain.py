"""A recorded failure as a chain of sentences, the outermost first."""

from __future__ import annotations

from dataclasses import dataclass

from temporalio.api.enums.v1 import TimeoutType
from temporalio.api.failure.v1 import Failure

# A chain is read by people; deeper ones repeat themselves.
DEEPEST = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """`what` failed, under which stable code if it has one, and what it said."""

    what: str
    code: str
    message: str

    def __str__(self) -> str:
        head = f"{self.what} [{self.code}]" if self.code else self.what
        return f"{head}: {self.message}" if self.message else head


def chain_of(failure: Failure) -> tuple[Link, ...]:
    """Empty for no failure at all."""
    links: list[Link] = []
    at: Failure | None = failure if failure.ByteSize() else None
    while at is not None and len(links) < DEEPEST:
        links.append(_link(at))
        at = at.cause if at.HasField("cause") else None
    return tuple(links)


def _link(failure: Failure) -> Link:
    kind = failure.WhichOneof("failure_info")
    what, code = "failure", ""
    if kind == "application_failure_info":
        what, code = "error", failure.application_failure_info.type
    elif kind == "activity_failure_info":
        info = failure.activity_failure_info
        what = f"activity {info.activity_type.name} on {info.identity or 'no worker'}"
    elif kind == "child_workflow_execution_failure_info":
        child = failure.child_workflow_execution_failure_info
        what = f"child {child.workflow_execution.workflow_id}"
    elif kind == "timeout_failure_info":
        what = f"timeout {_timeout(failure.timeout_failure_info.timeout_type)}"
    elif kind is not None:
        what = kind.removesuffix("_failure_info")
    return Link(what=what, code=code, message=failure.message)


def _timeout(kind: TimeoutType.ValueType) -> str:
    return TimeoutType.Name(kind).removeprefix("TIMEOUT_TYPE_").lower().replace("_", "-")

"""Our error tree across Temporal, both ways: an error to an `ApplicationError`, and any failure back to ours.

The stable code travels as the failure's type, so that retry policies and people can name it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    FailureError,
    TimeoutError,
    TimeoutType,
)

from firstlight.domain import errors

# What another attempt of the same work cannot mend. A database or a peer that is away can come back.
PERMANENT: tuple[type[errors.FirstlightError], ...] = (
    errors.InvalidInput,
    errors.NotFound,
    errors.Conflict,
    errors.SourceCorrupt,
    errors.SourceUnsupported,
    errors.CheckpointError,
    errors.DiskFull,
    errors.StartFailed,
)


def codes_of(*kinds: type[errors.FirstlightError]) -> list[str]:
    """Stable codes of these errors and of all below them in the tree, sorted."""
    found: set[str] = set()
    for kind in kinds:
        found.add(kind.code)
        found.update(codes_of(*kind.__subclasses__()))
    return sorted(found)


def application_error(
    error: errors.FirstlightError, *, told: Mapping[str, object] | None = None
) -> ApplicationError:
    """The failure an activity raises for `error`; its details are the error's fields, and behind them `told`.

    That is the attempt's last heartbeat, which a history keeps nowhere else.
    """
    fields = {name: value for name, value in error.fields.items() if isinstance(value, str | int | float)}
    details = (fields,) if told is None else (fields, told)
    return ApplicationError(
        error.message, *details, type=error.code, non_retryable=isinstance(error, PERMANENT)
    )


def error_of(failure: BaseException) -> errors.FirstlightError:
    """The error of our tree that a failed activity, child or workflow stands for: its innermost cause.

    Nobody taking up host work (schedule-to-start) is EngineGone, running out of time StartTimeout.
    """
    if isinstance(failure, errors.FirstlightError):
        return failure
    cause = _innermost(failure)
    if isinstance(cause, ApplicationError):
        kind = errors.error_type(cause.type or "")
        if kind is errors.ManifestInvalid:
            return errors.ManifestInvalid(cause.message, rule="malformed")
        return kind(cause.message)
    if isinstance(cause, TimeoutError):
        return _timed_out(cause, failure)
    if isinstance(cause, CancelledError | asyncio.CancelledError):
        return errors.Cancelled("the work was cancelled")
    return errors.FirstlightError(str(cause) or type(cause).__name__)


def never_taken_up(failure: BaseException) -> bool:
    """Whether nobody polled the queue the work was put on: its host is dead or cut off."""
    cause = _innermost(failure)
    return isinstance(cause, TimeoutError) and cause.type is TimeoutType.SCHEDULE_TO_START


def _innermost(failure: BaseException) -> BaseException:
    # FailureError.cause is Temporal's own chain; an ApplicationError may carry the Python error behind it.
    while isinstance(failure, FailureError) and not isinstance(failure, ApplicationError):
        # A heartbeat timeout hides the failure of the attempt before it; the timeout is what matters.
        if failure.cause is None or isinstance(failure, TimeoutError):
            break
        failure = failure.cause
    cause = failure.__cause__
    if cause is not None and not isinstance(failure, FailureError):
        return _innermost(cause)
    return failure


def _timed_out(cause: TimeoutError, failure: BaseException) -> errors.FirstlightError:
    what = _activity_name(failure)
    if cause.type is TimeoutType.SCHEDULE_TO_START:
        return errors.EngineGone(f"no worker took up {what}: its host does not answer")
    if cause.type is TimeoutType.HEARTBEAT:
        return errors.EngineGone(f"the process running {what} stopped answering")
    return errors.StartTimeout(f"{what} ran out of time")


def _activity_name(failure: BaseException | None) -> str:
    while failure is not None:
        if isinstance(failure, ActivityError):
            return failure.activity_type
        failure = failure.__cause__
    return "the work"

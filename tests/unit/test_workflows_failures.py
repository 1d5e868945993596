"""Errors across Temporal and back: codes survive, permanence follows the tree, causes are found."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    RetryState,
    TimeoutError,
    TimeoutType,
)

from firstlight.contracts.failures import PERMANENT, application_error, codes_of, error_of, never_taken_up
from firstlight.domain import errors
from workflows import policies


def tree(root: type[errors.FirstlightError]) -> list[type[errors.FirstlightError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]


def made(kind: type[errors.FirstlightError]) -> errors.FirstlightError:
    if kind is errors.ManifestInvalid:
        return errors.ManifestInvalid("broken", rule="overlap")
    return kind("what happened", model="tiny", size_bytes=3)


def activity_error(cause: BaseException) -> ActivityError:
    failure = ActivityError(
        "activity failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="x",
        activity_type="bring_up",
        activity_id="1",
        retry_state=RetryState.MAXIMUM_ATTEMPTS_REACHED,
    )
    failure.__cause__ = cause
    return failure


def child_error(cause: BaseException) -> ChildWorkflowError:
    failure = ChildWorkflowError(
        "child failed",
        namespace="default",
        workflow_id="w",
        run_id="r",
        workflow_type="ModelDownload",
        initiated_event_id=1,
        started_event_id=2,
        retry_state=RetryState.NON_RETRYABLE_FAILURE,
    )
    failure.__cause__ = cause
    return failure


def timed_out(kind: TimeoutType) -> TimeoutError:
    return TimeoutError("timed out", type=kind, last_heartbeat_details=[])


@pytest.mark.parametrize("kind", tree(errors.FirstlightError), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind: type[errors.FirstlightError]) -> None:
    sent = application_error(made(kind))
    assert sent.type == kind.code
    assert type(error_of(child_error(activity_error(sent)))) is kind
    assert sent.non_retryable == issubclass(kind, PERMANENT)


@pytest.mark.parametrize("kind", tree(errors.FirstlightError), ids=lambda kind: kind.__name__)
def test_nothing_retryable_is_permanent(kind: type[errors.FirstlightError]) -> None:
    if kind.is_retryable and kind is not errors.StartFailed:
        assert not issubclass(kind, PERMANENT)


def test_an_error_of_another_release_is_still_an_error() -> None:
    assert type(error_of(activity_error(ApplicationError("new", type="of_the_future")))) is (
        errors.FirstlightError
    )


@pytest.mark.parametrize(
    ("kind", "expected", "is_silent"),
    [
        (TimeoutType.SCHEDULE_TO_START, errors.EngineGone, True),
        (TimeoutType.HEARTBEAT, errors.EngineGone, False),
        (TimeoutType.START_TO_CLOSE, errors.StartTimeout, False),
        (TimeoutType.SCHEDULE_TO_CLOSE, errors.StartTimeout, False),
    ],
)
def test_time_outs_say_what_they_mean(
    kind: TimeoutType, expected: type[errors.FirstlightError], is_silent: bool
) -> None:
    timeout = timed_out(kind)
    # The attempt before it had failed in some way: the timeout is what ended the activity.
    timeout.__cause__ = ApplicationError("an earlier attempt", type="pool_full")
    failure = child_error(activity_error(timeout))
    assert type(error_of(failure)) is expected
    assert "bring_up" in error_of(failure).message
    assert never_taken_up(failure) is is_silent


def test_a_cancellation_is_one() -> None:
    assert isinstance(error_of(activity_error(CancelledError())), errors.Cancelled)


# Any: retry policies hold lists of codes.
@pytest.mark.parametrize("policy", [policies.BRING_UP, policies.DOWNLOAD, policies.UNTIL_DONE, policies.FEW])
def test_policies_give_up_at_once_on_what_cannot_pass(policy: Any) -> None:
    named = set(policy.non_retryable_error_types)
    assert {"stale_epoch", "model_not_found", "checksum_mismatch", "source_corrupt"} <= named
    assert not named & {"database_unavailable", "engine_gone", "source_unreachable", "pool_full"}


def test_codes_cover_whole_branches() -> None:
    assert codes_of(errors.SourceError) == [
        "peer_unreachable",
        "source_corrupt",
        "source_error",
        "source_unreachable",
        "source_unsupported",
    ]

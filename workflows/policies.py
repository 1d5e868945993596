"""Time-outs and retry policies, named, and why each has its value.

A killed worker must cost a start seconds: heartbeats show it within HEARTBEAT, a host queue that nobody
polls within HOST_ANSWERS. Together with one more plan a start survives any one death in under 15 s.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio.common import RetryPolicy

from firstlight.contracts.failures import PERMANENT, codes_of
from firstlight.domain import errors

# Longer than a busy host agent ever pauses, short enough that kill -9 is noticed while a client waits.
HEARTBEAT = timedelta(seconds=3)
# A host agent that was killed is back within about 4 s; one that is not is taken for dead.
HOST_ANSWERS = timedelta(seconds=6)
# An instance that runs well outlives its agent's restart; only its lease decides that the host is lost.
WATCH_IS_TAKEN_UP = timedelta(seconds=60)

_PERMANENT = codes_of(*PERMANENT)

# On a client's path: repeats for about 7 s (a store or supervisor that restarts is back by then), then
# another plan. An engine that refuses its bytes, or hangs over them, does so again.
BRING_UP = RetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=2),
    maximum_attempts=7,
    non_retryable_error_types=[*_PERMANENT, *codes_of(errors.AttachFailed, errors.StartTimeout)],
)
# Sources have bad minutes; bytes already fetched are kept, so a repeat is cheap.
DOWNLOAD = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=8,
    non_retryable_error_types=_PERMANENT,
)
# Undoing and recording: SQL that must happen however long Postgres is away.
UNTIL_DONE = RetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=5),
    non_retryable_error_types=_PERMANENT,
)
# Best effort beside something better: the reconciler comes again.
FEW = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=2.0,
    maximum_attempts=3,
    non_retryable_error_types=_PERMANENT,
)
ONCE = RetryPolicy(maximum_attempts=1)

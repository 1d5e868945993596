"""What a model's maximum of instances says before any host is looked at."""

from __future__ import annotations

from firstlight.domain.fleet import FleetSnapshot, StartRequest
from firstlight.domain.plans import Reject, Wait

RETRY_AFTER_S = 1.0
NEVER_RETRY_AFTER_S = 60.0


def at_limit(request: StartRequest, snapshot: FleetSnapshot) -> Wait | Reject | None:
    """The answer if no further instance may be started; None if one may.

    An instance that serves is waited for too: it became ready after the caller last looked.
    """
    name, maximum = request.model.name, request.model.max_instances
    if maximum is None:
        return None
    if maximum == 0:
        return Reject("the model's maximum is 0 instances", NEVER_RETRY_AFTER_S, ())
    starting = [
        (start.ready_in_s, start.instance_id)
        for start in snapshot.starts
        if start.model == name and start.instance_id != request.replaces
    ]
    # Of one model only: grouping all of them takes five times as long.
    ready = [
        one.instance_id
        for one in snapshot.running
        if one.model.name == name
        if one.instance_id != request.replaces
    ]
    if len(starting) + len(ready) < maximum:
        return None
    reason = f"the model runs at its maximum of {maximum} instance{'s' if maximum > 1 else ''}"
    if ready:
        return Wait(reason, 0.0, max(ready), ())
    ready_in_s, instance_id = min(starting)
    if not request.may_wait:
        return Reject(reason, max(RETRY_AFTER_S, ready_in_s), ())
    if request.deadline_s is not None and ready_in_s > request.deadline_s:
        reason = f"its start takes {ready_in_s:.1f} s more, the deadline is {request.deadline_s:.1f} s"
        return Reject(reason, ready_in_s, ())
    return Wait("a start of this model is under way", ready_in_s, instance_id, ())

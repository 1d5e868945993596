"""What a model's maximum of instances says before the scheduler is asked."""

from __future__ import annotations

from firstlight.database.fleet_view import FleetView
from firstlight.domain.scheduler import Reject, Wait

RETRY_AFTER_S = 1.0


def at_maximum(view: FleetView, *, may_wait: bool) -> Wait | Reject | None:
    """The answer if no further instance may be started; None if one may.

    A ready instance is waited for too: it became ready after the caller last looked.
    """
    maximum = view.wanted.max_instances
    if maximum == 0:
        return Reject(reason="the model's maximum is 0 instances", retry_after_s=60.0, candidates=())
    if len(view.starting) + len(view.ready) < maximum:
        return None
    reason = f"the model runs at its maximum of {maximum} instance{'s' if maximum > 1 else ''}"
    if view.ready:
        return Wait(reason=reason, ready_in_s=0.0, instance_id=view.ready[-1], candidates=())
    soonest = min(
        (start for start in view.snapshot.starts if start.instance_id in view.starting),
        key=lambda start: (start.ready_in_s, start.instance_id),
    )
    if may_wait:
        return Wait(
            reason="a start of this model is under way",
            ready_in_s=soonest.ready_in_s,
            instance_id=soonest.instance_id,
            candidates=(),
        )
    return Reject(reason=reason, retry_after_s=max(RETRY_AFTER_S, soonest.ready_in_s), candidates=())

"""Starting a model on an operator's word."""

from __future__ import annotations

import time
from typing import Any

from api.services import Services
from firstlight.database.records import PlannedStart
from firstlight.domain.errors import NoCapacity
from firstlight.domain.scheduler import Migrate, Place, Reject, Wait


# Any: JSON.
async def warm(services: Services, name: str, *, wait: bool, request_id: str) -> dict[str, Any]:
    """See to it that an instance runs or starts.

    Raises: UnknownModel, NoCapacity, StartFailed, StartTimeout.
    """
    record = await services.catalog.find(name)
    lane = services.table.lane(record.name)
    answer: dict[str, Any] = {
        "model": record.name,
        "state": "waiting",
        "instance_id": None,
        "host_id": None,
        "decision_id": None,
        "reason": None,
        "estimated_s": None,
    }
    if not lane.routes:
        planned = await services.director.plan(record.name, request_id=request_id)
        answer |= _decided(planned)
        if not wait:
            return answer
    slot = await lane.take(
        deadline_s=time.monotonic() + services.settings.start_timeout_s,
        request_id=request_id,
        needs_slot=False,
    )
    return answer | {
        "state": "ready",
        "instance_id": slot.route.instance_id,
        "host_id": slot.route.host_id,
    }


def _decided(planned: PlannedStart) -> dict[str, Any]:
    told: dict[str, Any] = {"decision_id": planned.decision_id}
    match planned.decision:
        case Reject(reason=reason, retry_after_s=retry_after_s):
            raise NoCapacity(reason, retry_after_s=retry_after_s)
        case Wait(reason=reason, ready_in_s=ready_in_s, instance_id=instance_id):
            told |= {"reason": reason, "estimated_s": ready_in_s, "instance_id": instance_id}
        case Place(host_id=host_id, estimate=estimate) | Migrate(host_id=host_id, estimate=estimate):
            told |= {"state": "starting", "host_id": host_id, "estimated_s": estimate.total_s}
    if planned.plan is not None:
        told["instance_id"] = planned.plan.instance_id
    return told

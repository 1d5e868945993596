"""What the database says of an instance, as the route table takes it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from firstlight.domain.lifecycle import InstanceState


@dataclass(frozen=True, slots=True)
class InstanceNotice:
    """One instance's state, from a notification or from a refresh; `endpoint` is there once it is ready."""

    instance_id: str
    model: str
    host_id: str
    state: InstanceState
    endpoint: str | None
    epoch: int
    max_concurrency: int
    failure_code: str | None = None
    failure: str | None = None


def parse_notice(payload: str) -> InstanceNotice:
    """The notice in a NOTIFY payload.

    Raises: ValueError, KeyError or TypeError for a payload of another release.
    """
    row = json.loads(payload)
    return InstanceNotice(
        instance_id=row["instance_id"],
        model=row["model"],
        host_id=row["host_id"],
        state=InstanceState(row["state"]),
        endpoint=row["endpoint"] or None,
        epoch=int(row["epoch"]),
        max_concurrency=int(row["max_concurrency"]),
        failure_code=row.get("failure_code"),
        failure=row.get("failure"),
    )

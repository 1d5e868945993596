"""Victims of a plan, read back from its decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstlight.contracts.starts import CheckpointRef, PlannedEstimate, PlannedVictim, StartPlan


# Any: documents that plan_writing has written of the very dataclasses they become here.
def planned_victim(document: Mapping[str, Any]) -> PlannedVictim:
    destination = document["destination"]
    known = {**document, "destination": _plan(destination) if destination is not None else None}
    return PlannedVictim(**known)


def _plan(document: Mapping[str, Any]) -> StartPlan:
    return StartPlan(
        **{
            **document,
            "checkpoint": CheckpointRef(**document["checkpoint"]),
            "estimate": PlannedEstimate(**document["estimate"]),
            "victims": [planned_victim(victim) for victim in document["victims"]],
        }
    )

"""All tables in one import, so that `Base.metadata` is complete wherever this module is imported."""

from __future__ import annotations

from firstlight.database.access_tables import ApiKeyRow, AuditRow, KeyUsageRow
from firstlight.database.arrival_tables import ArrivalRow
from firstlight.database.base import Base
from firstlight.database.history_tables import DecisionRow, MigrationRow, StartupObservationRow
from firstlight.database.host_tables import GpuRow, HostRow, PlacementRow
from firstlight.database.instance_tables import (
    FENCING_EPOCH,
    LIVE,
    EngineLoadRow,
    InstanceRow,
    PromiseRow,
    ReservationRow,
)
from firstlight.database.learned_tables import MoveModelRow, MoveObservationRow
from firstlight.database.model_tables import CheckpointRow, ModelRow

__all__ = [
    "FENCING_EPOCH",
    "LIVE",
    "ApiKeyRow",
    "ArrivalRow",
    "AuditRow",
    "Base",
    "CheckpointRow",
    "DecisionRow",
    "EngineLoadRow",
    "GpuRow",
    "HostRow",
    "InstanceRow",
    "KeyUsageRow",
    "MigrationRow",
    "ModelRow",
    "MoveModelRow",
    "MoveObservationRow",
    "PlacementRow",
    "PromiseRow",
    "ReservationRow",
    "StartupObservationRow",
]

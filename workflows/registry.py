"""All workflow types, for workers and replay."""

from __future__ import annotations

from workflows.cold_start import ColdStart
from workflows.fleet_reconciler import FleetReconciler
from workflows.host_drain import HostDrain
from workflows.host_lifecycle import HostLifecycle
from workflows.instance_lifecycle import InstanceLifecycle
from workflows.live_migration import LiveMigration
from workflows.model_download import ModelDownload

WORKFLOWS: tuple[type, ...] = (
    ColdStart,
    ModelDownload,
    InstanceLifecycle,
    HostLifecycle,
    FleetReconciler,
    LiveMigration,
    HostDrain,
)

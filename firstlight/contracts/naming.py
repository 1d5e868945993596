"""Names of task queues, workflow ids and search attributes: deterministic, and in one place."""

from __future__ import annotations

from temporalio.common import SearchAttributeKey

CONTROL_QUEUE = "firstlight-control"
RECONCILER_SCHEDULE_ID = "firstlight-fleet-reconciler"
RECONCILER_WORKFLOW_ID = "fleet-reconciler"

# Workflow types.
COLD_START = "ColdStart"
MODEL_DOWNLOAD = "ModelDownload"
INSTANCE_LIFECYCLE = "InstanceLifecycle"
HOST_LIFECYCLE = "HostLifecycle"
FLEET_RECONCILER = "FleetReconciler"
LIVE_MIGRATION = "LiveMigration"
HOST_DRAIN = "HostDrain"

# Signals.
STOP = "stop"
KEEP_ALIVE = "keep_alive"
HOST_REGISTERED = "registered"

MODEL = SearchAttributeKey.for_keyword("FirstlightModel")
HOST = SearchAttributeKey.for_keyword("FirstlightHost")
PHASE = SearchAttributeKey.for_keyword("FirstlightPhase")
OUTCOME = SearchAttributeKey.for_keyword("FirstlightOutcome")
ESTIMATED_MS = SearchAttributeKey.for_int("FirstlightEstimatedMs")
ACTUAL_MS = SearchAttributeKey.for_int("FirstlightActualMs")
# Of a migration: FirstlightHost is where it goes, this is where it comes from.
SOURCE_HOST = SearchAttributeKey.for_keyword("FirstlightSourceHost")
SEARCH_ATTRIBUTES = (MODEL, HOST, PHASE, OUTCOME, ESTIMATED_MS, ACTUAL_MS, SOURCE_HOST)


def host_queue(host_id: str) -> str:
    """Task queue of the one host agent that can do the work."""
    return f"host-{host_id}"


def cold_start_id(model: str, instance_id: str) -> str:
    return f"cold-start/{model}/{instance_id}"


def download_id(checkpoint_id: str, host_id: str) -> str:
    return f"download/{checkpoint_id}/{host_id}"


def instance_workflow_id(instance_id: str) -> str:
    return f"instance/{instance_id}"


def host_workflow_id(host_id: str) -> str:
    return f"host/{host_id}"


def migration_workflow_id(instance_id: str, number: int) -> str:
    """`number` counts the migrations of this instance, from 1."""
    return f"migration/{instance_id}/{number}"


def drain_workflow_id(host_id: str) -> str:
    return f"drain/{host_id}"

"""What the console shows, as plain JSON values: sections, small enough to be sent anew at every change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from api.admin.plain import plain
from api.progress_book import Heard, Word
from firstlight.contracts.naming import (
    cold_start_id,
    drain_workflow_id,
    host_workflow_id,
    instance_workflow_id,
)
from firstlight.database.models_repository import ModelRecord
from firstlight.database.records import (
    HostRecord,
    InstanceRecord,
    MigrationRecord,
    PlacementRecord,
    StartRecord,
)
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import HostState

# Of one tier of one host; the rest is told as a number.
CHECKPOINTS_SHOWN = 24

# Any: JSON.
Rows = list[dict[str, Any]]


def host_rows(hosts: Iterable[HostRecord]) -> Rows:
    """Without leases: they are renewed all the time, and a state says what comes of them."""
    return [
        {
            "host_id": host.host_id,
            "host_class": host.host_class,
            "state": str(host.state),
            "gpus": plain(host.gpus),
            "tiers": [
                _tier(host, Tier.DRAM, host.dram_used_bytes, host.dram_capacity_bytes),
                _tier(host, Tier.SSD, host.ssd_used_bytes, host.ssd_capacity_bytes),
            ],
            "workflow_id": _workflow_of(host),
        }
        for host in hosts
    ]


def instance_rows(instances: Iterable[InstanceRecord], loads: Mapping[str, tuple[int, int]]) -> Rows:
    """`loads`: (requests, tokens) by instance, as hosts' agents saw them."""
    return [
        {
            "instance_id": one.instance_id,
            "model": one.model,
            "host_id": one.host_id,
            "state": str(one.state),
            "epoch": one.epoch,
            "gpu_indices": list(one.gpu_indices),
            "max_concurrency": one.max_concurrency,
            "created_at_unix_s": one.created_at_unix_s,
            "ready_at_unix_s": one.ready_at_unix_s,
            "seen_requests": loads.get(one.instance_id, (None, None))[0],
            "seen_tokens": loads.get(one.instance_id, (None, None))[1],
            "workflow_id": instance_workflow_id(one.instance_id),
        }
        for one in instances
    ]


def start_rows(starts: Iterable[StartRecord]) -> Rows:
    """As `GET /admin/v1/starts` has them, without candidates."""
    return [{**_row(start, "candidates"), "workflow_id": _start_id(start)} for start in starts]


def migration_rows(migrations: Iterable[MigrationRecord]) -> Rows:
    return [{**_row(one, "observations"), "workflow_id": one.migration_id} for one in migrations]


def model_rows(models: Iterable[ModelRecord]) -> Rows:
    return [_row(model) for model in sorted(models, key=lambda model: model.name)]


def progress_rows(heard: Mapping[str, Heard[Word]]) -> dict[str, dict[str, Any]]:
    """By the id of the instance or of the migration."""
    return {
        about: {**_row(one.word), "since_unix_s": round(one.since_unix_s, 3)} for about, one in heard.items()
    }


def _start_id(start: StartRecord) -> str:
    return cold_start_id(start.model, start.instance_id)


def _workflow_of(host: HostRecord) -> str:
    is_draining = host.state is HostState.DRAINING
    return drain_workflow_id(host.host_id) if is_draining else host_workflow_id(host.host_id)


def _tier(host: HostRecord, tier: Tier, used_bytes: int, capacity_bytes: int) -> dict[str, Any]:
    found = sorted(
        (placement for placement in host.placements if placement.tier is tier),
        key=lambda placement: (-placement.size_bytes, placement.checkpoint_id),
    )
    return {
        "tier": str(tier),
        "used_bytes": used_bytes,
        "capacity_bytes": capacity_bytes,
        "checkpoints": [_checkpoint(placement) for placement in found[:CHECKPOINTS_SHOWN]],
        "more": max(0, len(found) - CHECKPOINTS_SHOWN),
    }


def _checkpoint(placement: PlacementRecord) -> dict[str, Any]:
    return {
        "checkpoint_id": placement.checkpoint_id,
        "state": str(placement.state),
        "size_bytes": placement.size_bytes,
    }


def _row(record: object, *without: str) -> dict[str, Any]:
    row = plain(record)
    assert isinstance(row, dict), "a record is a dataclass"
    return {name: value for name, value in row.items() if name not in without}

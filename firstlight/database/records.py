"""What repositories take and return: plain values, so that no caller ever holds a row or a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from firstlight.contracts.starts import PlannedEstimate, StartPlan
from firstlight.domain.fleet import Edge, EdgeModel, Tier
from firstlight.domain.lifecycle import HostState, InstanceState, ModelState, PlacementState
from firstlight.domain.migration import MoveObservation
from firstlight.domain.scheduler import Candidate, Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a deployer asks for; the same spec twice is the same model."""

    name: str
    source: str
    source_revision: str
    checkpoint_id: str
    source_bytes: int
    # An estimate until the first conversion has recorded the checkpoint's own size.
    size_bytes: int
    dtype: str = "float32"
    gpu_count: int = 1
    context_length: int = 0
    min_instances: int = 0
    max_instances: int = 1
    keep_alive_s: float = 300.0
    max_concurrency: int = 8
    # Higher wins where GPUs are short.
    priority: int = 0
    # How the KV cache of its requests travels when an instance moves: exact, tokens or fast.
    transfer: str = "exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord(ModelSpec):
    state: ModelState
    created_at_unix_s: float
    # Empty until the first conversion anywhere has recorded it.
    manifest_digest: str = ""
    size_is_exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    instance_id: str
    model: str
    host_id: str
    state: InstanceState
    epoch: int
    endpoint: str | None
    checkpoint_id: str
    max_concurrency: int
    keep_alive_s: float
    created_at_unix_s: float
    ready_at_unix_s: float | None
    stopped_at_unix_s: float | None
    end_reason: str | None
    failure_code: str | None
    failure: str | None
    # GPUs held now; empty once the instance has ended.
    gpu_indices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRecord:
    """One migration; figures are zero until it has ended. Seconds; bytes of tokens and KV cache."""

    migration_id: str
    model: str
    source_instance_id: str
    source_host_id: str
    destination_instance_id: str
    destination_host_id: str
    state: str
    reason: str
    transfer: str
    requests_moved: int
    rounds: int
    tokens_moved: int
    bytes_moved: int
    start_s: float
    move_s: float
    pause_s: float
    # Of the destination, if one was started for it; and of moving, by all moves before it, once it has ended.
    predicted_start_s: float | None
    predicted_move_s: float | None
    observations: tuple[MoveObservation, ...]
    started_at_unix_s: float
    ended_at_unix_s: float | None
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStart:
    """A decision as kept; `plan` is there exactly when the decision is Place or Migrate."""

    decision_id: str
    decision: Decision
    plan: StartPlan | None
    candidates_markdown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActualStart:
    """What each phase of a start took, in seconds; the last two come from the API and may be unknown."""

    queue_s: float
    download_s: float
    load_s: float
    attach_s: float
    control_s: float
    total_s: float
    bytes_moved: int
    plans_tried: int
    # Stood still for GPUs that others still held.
    free_s: float = 0.0
    # When the first byte moved towards DRAM, on the host's clock; None: it was there already.
    moving_at_unix_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """One start: what was predicted, beside what happened."""

    instance_id: str
    decision_id: str
    request_id: str
    model: str
    host_id: str
    epoch: int
    state: InstanceState
    tier: str
    predicted: PlannedEstimate
    actual: ActualStart | None
    candidates: tuple[Candidate, ...]
    decided_at_unix_s: float
    ready_at_unix_s: float | None
    ended_at_unix_s: float | None
    first_token_s: float | None = None
    request_to_first_token_s: float | None = None
    prefill_s: float | None = None
    failure_code: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDescription:
    """What a driver says of one GPU."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRegistration:
    """What a host agent says of its machine when it joins. `host_class` groups like machines ("cpu-2c")."""

    host_id: str
    host_class: str
    host_address: str
    store_address: str
    gpu_count: int
    # Of one slot of a host without GPUs.
    gpu_memory_bytes: int
    ssd_capacity_bytes: int
    dram_capacity_bytes: int
    # What the store's probe measured; 0: not yet, or no such device.
    ssd_read_bytes_per_s: float = 0.0
    dram_to_gpu_bytes_per_s: float = 0.0
    # Where other stores may fetch from; empty: they may not.
    peer_endpoint: str = ""
    # By index; empty on a host without, which has `gpu_count` slots instead.
    gpus: tuple[GpuDescription, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRecord:
    gpu_index: int
    memory_bytes: int
    name: str = ""
    instance_id: str | None = None
    model: str | None = None
    instance_state: InstanceState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRecord:
    checkpoint_id: str
    tier: Tier
    state: PlacementState
    size_bytes: int
    updated_at_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    host_id: str
    host_class: str
    host_address: str
    store_address: str
    state: HostState
    registration: int
    # Negative once the lease has run out.
    lease_remaining_s: float
    renewed_at_unix_s: float
    registered_at_unix_s: float
    ssd_capacity_bytes: int
    dram_capacity_bytes: int
    ssd_used_bytes: int
    dram_used_bytes: int
    ssd_read_bytes_per_s: float
    dram_to_gpu_bytes_per_s: float
    gpus: tuple[GpuRecord, ...]
    placements: tuple[PlacementRecord, ...]
    edges: Mapping[Edge, EdgeModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRecord:
    key_id: str
    name: str
    key_hash: str
    scope: str
    created_at_unix_s: float
    expires_at_unix_s: float | None
    revoked_at_unix_s: float | None
    # None: no limit.
    requests_per_minute: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKeys:
    """`active` are those that open something; `is_any_known`: there are some, if only ended ones."""

    active: tuple[ApiKeyRecord, ...]
    is_any_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    at_unix_s: float
    actor: str
    act: str
    subject: str
    detail: Mapping[str, object]

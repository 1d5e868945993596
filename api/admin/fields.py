"""Bodies of admin requests, and the shapes of admin answers as OpenAPI shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.openai.fields import Strict

TransferPolicy = Literal["exact", "tokens", "fast"]


class DeployRequest(Strict):
    name: str
    source: str = Field(description="hf://, s3://, gs://, az://, https:// or file:// URI.")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gpu_count: int = Field(default=1, ge=1, le=64)
    context_length: int = Field(default=0, ge=0, description="0: the model's own.")
    min_instances: int = Field(default=0, ge=0, le=1000)
    max_instances: int = Field(default=1, ge=1, le=1000)
    keep_alive_s: float | None = Field(default=None, ge=0, description="Unset: the server's default.")
    max_concurrency: int | None = Field(default=None, ge=1, le=1024)
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Higher wins: nothing gives way to a model of lower priority.",
    )
    transfer: TransferPolicy | None = Field(
        default=None,
        description="How requests' KV cache travels when an instance moves; unset: the server's default.",
    )


class ScaleRequest(Strict):
    min_instances: int | None = Field(default=None, ge=0, le=1000)
    max_instances: int | None = Field(default=None, ge=1, le=1000)
    keep_alive_s: float | None = Field(default=None, ge=0)
    max_concurrency: int | None = Field(default=None, ge=1, le=1024)
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    transfer: TransferPolicy | None = None


class StartRequest(Strict):
    wait: bool = Field(default=True, description="Answer only when an instance is ready.")


class ModelAnswer(BaseModel):
    name: str
    source: str
    source_revision: str
    checkpoint_id: str
    source_bytes: int
    size_bytes: int
    dtype: str
    gpu_count: int
    context_length: int
    min_instances: int
    max_instances: int
    keep_alive_s: float
    max_concurrency: int
    priority: int
    transfer: str
    state: str
    created_at_unix_s: float
    manifest_digest: str
    size_is_exact: bool


class ModelList(BaseModel):
    models: list[ModelAnswer]


class DeleteAnswer(BaseModel):
    name: str
    state: Literal["deleting", "deleted"]
    live_instances: int


class StartAnswer(BaseModel):
    model: str
    state: Literal["ready", "starting", "waiting"]
    instance_id: str | None = None
    host_id: str | None = None
    decision_id: str | None = None
    reason: str | None = None
    estimated_s: float | None = None


class EstimateAnswer(BaseModel):
    queue_s: float
    download_s: float
    load_s: float
    free_s: float
    attach_s: float
    control_s: float
    total_s: float
    tier: str
    peer_host_id: str | None = None


class VictimAnswer(BaseModel):
    instance_id: str
    model_name: str
    action: Literal["evict", "move"]
    to_host: str | None
    to_gpu_indices: list[int]
    to_instance_id: str | None
    seconds: float


class CandidateAnswer(BaseModel):
    host_id: str
    estimate: EstimateAnswer | None
    reason: str | None
    gpu_indices: list[int]
    victims: list[VictimAnswer]


class ActualAnswer(BaseModel):
    queue_s: float
    download_s: float
    load_s: float
    free_s: float
    attach_s: float
    control_s: float
    total_s: float
    bytes_moved: int
    plans_tried: int
    moving_at_unix_s: float | None


class StartRow(BaseModel):
    instance_id: str
    decision_id: str
    request_id: str
    model: str
    host_id: str
    epoch: int
    state: str
    tier: str
    predicted: EstimateAnswer
    actual: ActualAnswer | None
    candidates: list[CandidateAnswer]
    decided_at_unix_s: float
    ready_at_unix_s: float | None
    ended_at_unix_s: float | None
    first_token_s: float | None
    request_to_first_token_s: float | None
    prefill_s: float | None
    failure_code: str | None
    failure: str | None


class StartList(BaseModel):
    starts: list[StartRow]


class DecisionAnswer(BaseModel):
    decision_id: str
    request_id: str
    model: str
    kind: Literal["place", "migrate", "wait", "reject"]
    reason: str
    host_id: str | None
    instance_id: str | None
    epoch: int | None
    gpu_indices: list[int]
    estimate: EstimateAnswer | None
    candidates: list[CandidateAnswer]
    deadline_s: float | None
    replaces: str | None
    decided_at_unix_s: float


class DecisionList(BaseModel):
    decisions: list[DecisionAnswer]


class ProgressAnswer(BaseModel):
    """How far a start is, as its host said within the last seconds."""

    instance_id: str
    epoch: int
    phase: str = Field(description="queue, download, load, free, attach or control.")
    phase_s: float
    bytes_done: int
    bytes_total: int = Field(description="0: this phase moves none, or nobody knows how many.")
    done: dict[str, float] = Field(description="Seconds of the phases that have ended.")


class InstanceAnswer(BaseModel):
    instance_id: str
    model: str
    host_id: str
    state: str
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
    gpu_indices: list[int]
    progress: ProgressAnswer | None


class InstanceList(BaseModel):
    instances: list[InstanceAnswer]


class GpuAnswer(BaseModel):
    gpu_index: int
    memory_bytes: int
    name: str
    instance_id: str | None
    model: str | None
    instance_state: str | None


class PlacementAnswer(BaseModel):
    checkpoint_id: str
    tier: str
    state: str
    size_bytes: int
    updated_at_unix_s: float


class EdgeAnswer(BaseModel):
    overhead_s: float
    bandwidth_bytes_per_s: float
    observations: int


class HostAnswer(BaseModel):
    host_id: str
    host_class: str
    host_address: str
    store_address: str
    state: str
    registration: int
    lease_remaining_s: float
    renewed_at_unix_s: float
    registered_at_unix_s: float
    ssd_capacity_bytes: int
    dram_capacity_bytes: int
    ssd_used_bytes: int
    dram_used_bytes: int
    ssd_read_bytes_per_s: float
    dram_to_gpu_bytes_per_s: float
    gpus: list[GpuAnswer]
    placements: list[PlacementAnswer]
    edges: dict[str, EdgeAnswer]


class HostList(BaseModel):
    hosts: list[HostAnswer]

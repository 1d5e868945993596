"""What the scheduler sees: an immutable picture of hosts, models and starts at one moment.

Times are seconds; absolute ones count from the Unix epoch and are given by the caller, never read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from firstlight.domain.lifecycle import HostState
from firstlight.domain.migration import MoveModel
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName

# Draining an engine that has nothing to do, and its process giving back the GPU.
PRIOR_EVICT_S = 0.1


class Tier(StrEnum):
    """Where a checkpoint can be, farthest first."""

    REMOTE = "remote"
    PEER = "peer"
    SSD = "ssd"
    DRAM = "dram"


class Edge(StrEnum):
    """One step of a checkpoint towards the GPU. What comes from a peer is ready for DRAM as it is."""

    # An enumeration hashes by a call into Python; a decision looks edges up thousands of times.
    __hash__ = str.__hash__

    REMOTE_TO_SSD = "remote_to_ssd"
    PEER_TO_DRAM = "peer_to_dram"
    SSD_TO_DRAM = "ssd_to_dram"
    DRAM_TO_GPU = "dram_to_gpu"


@dataclass(frozen=True, slots=True)
class EdgeModel:
    """`seconds(n) = overhead_s + n / bandwidth_bytes_per_s`, fitted to `observations` real transfers."""

    overhead_s: float
    bandwidth_bytes_per_s: float
    observations: int = 0


# Sane before anything was measured: a slow link, a small NVMe, pageable copies.
PRIORS: Mapping[Edge, EdgeModel] = {
    Edge.REMOTE_TO_SSD: EdgeModel(overhead_s=4.0, bandwidth_bytes_per_s=100e6),
    # Ten-gigabit Ethernet, and a connection.
    Edge.PEER_TO_DRAM: EdgeModel(overhead_s=0.02, bandwidth_bytes_per_s=1.0e9),
    Edge.SSD_TO_DRAM: EdgeModel(overhead_s=0.01, bandwidth_bytes_per_s=1.5e9),
    Edge.DRAM_TO_GPU: EdgeModel(overhead_s=0.0, bandwidth_bytes_per_s=10e9),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    memory_bytes: int
    # Whose it is, if anyone's; `free_in_s` is when that instance is expected to give it back.
    instance_id: InstanceId | None = None
    free_in_s: float | None = None
    # That instance has nothing left to do and is not to be freed at once: it ends by itself, or may be ended
    # then, unless it is asked for first.
    is_given_up: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    host_id: HostId
    host_class: str
    state: HostState
    gpus: tuple[Gpu, ...]
    edges: Mapping[Edge, EdgeModel]
    # Nearest tier of every checkpoint this host holds; one that is absent is REMOTE.
    tiers: Mapping[CheckpointId, Tier] = field(default_factory=dict)
    # Bytes promised on an edge to starts that have not finished.
    queued_bytes: Mapping[Edge, int] = field(default_factory=dict)
    # What the checkpoint's DRAM pool and SSD cache could hold at most.
    dram_capacity_bytes: int = 0
    ssd_capacity_bytes: int = 0
    # Where other stores may fetch from; empty: they may not.
    peer_endpoint: str = ""
    # Bytes that other hosts' starts have still to fetch from this one.
    uplink_queued_bytes: int = 0

    def free_gpus(self) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.instance_id is None)


@dataclass(frozen=True, slots=True)
class Model:
    name: ModelName
    checkpoint_id: CheckpointId
    size_bytes: int
    source_bytes: int
    gpu_count: int = 1
    # Learned seconds to bind an engine, by `estimator.attach_key`.
    attach_s: Mapping[str, float] = field(default_factory=dict)
    # Higher wins: an instance is never touched for a model of lower priority.
    priority: int = 0
    # So many idle instances are kept, whoever wants their GPUs.
    min_instances: int = 0
    # Starting and serving ones together; None: as many as fit.
    max_instances: int | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A READY instance, with what freeing its GPUs would mean."""

    instance_id: InstanceId
    model: Model
    host_id: HostId
    gpu_indices: tuple[int, ...]
    # Requests it is computing, and their tokens so far, prompts included.
    requests: int = 0
    tokens: int = 0
    # Since when it has had nothing to do; None: it is busy.
    idle_s: float | None = None
    # False while it migrates already, drains, or its requests may not be moved.
    is_movable: bool = True
    # How much longer nobody is likely to ask for it, by its own history; None: not known.
    expected_idle_for_s: float | None = None


@dataclass(frozen=True, slots=True)
class StartUnderWay:
    instance_id: InstanceId
    model: ModelName
    host_id: HostId
    ready_in_s: float


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    taken_at_unix_s: float
    hosts: tuple[Host, ...]
    starts: tuple[StartUnderWay, ...] = ()
    # Learned share of a start that is neither bytes nor compute.
    control_s: float = 0.05
    # The same of starts whose bytes move meanwhile: only what those do not hide.
    control_beside_bytes_s: float = 0.05
    # Instances whose GPUs may be freed for a start; one that is left out is never touched.
    running: tuple[Running, ...] = ()
    # Learned cost of moving an instance's requests, by `estimator.move_key`; absent: PRIOR_MOVE.
    moves: Mapping[str, MoveModel] = field(default_factory=dict)
    # Learned seconds until an idle instance that is told to end has given its GPUs back.
    evict_s: float = PRIOR_EVICT_S
    # What `fleet_index.index_of` has gathered, for all decisions on this snapshot.
    kept: list[object] = field(default_factory=list, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class StartRequest:
    model: Model
    # A start that would be ready later than this is rejected at once.
    deadline_s: float | None = None
    # Hosts that failed this start already.
    excluded_hosts: frozenset[HostId] = frozenset()
    # Whether a start of the same model that is under way may serve this request.
    may_wait: bool = True
    # Whether running instances may be moved or ended to make room.
    may_free: bool = True
    # How long this start has been put off for GPUs that are only expected back. None: never put it off
    # while there is a plan that can begin now.
    waited_s: float | None = None
    # The live instance that this start takes the place of: it does not count against `max_instances`.
    replaces: InstanceId | None = None

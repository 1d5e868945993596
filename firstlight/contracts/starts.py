"""Messages of `ColdStart` and `ModelDownload`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlannedEstimate:
    """The chosen candidate's estimate, as kept in the decision; seconds."""

    queue_s: float
    download_s: float
    load_s: float
    attach_s: float
    control_s: float
    tier: str
    # Whose store the bytes come from, if tier is "peer".
    peer_host_id: str = ""
    # How much longer than its bytes it waits for its GPUs.
    free_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.queue_s + self.download_s + self.load_s + self.free_s + self.attach_s + self.control_s


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    checkpoint_id: str
    source: str
    dtype: str
    size_bytes: int
    # Empty until the first conversion anywhere has recorded it.
    manifest_digest: str = ""
    # host:port of other hosts' stores that hold it, the best first; the source is what remains.
    peer_endpoints: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StartPlan:
    """A decision made real: GPUs of `host_id` are reserved for `instance_id` under `epoch`."""

    decision_id: str
    instance_id: str
    epoch: int
    host_id: str
    gpu_indices: list[int]
    model: str
    checkpoint: CheckpointRef
    estimate: PlannedEstimate
    max_concurrency: int
    keep_alive_s: float
    decided_at_unix_s: float
    context_length: int = 0  # 0: the model's own
    # Instances that give way to it.
    victims: list[PlannedVictim] = field(default_factory=list)
    # Some of its GPUs are promised and still another instance's: it may attach once they are its own.
    awaits_gpus: bool = False


@dataclass(frozen=True, slots=True)
class PlannedVictim:
    """An instance that gives its GPUs up for a start: it ends when idle, or its requests move.

    One that moves has a migration, whose row and destination are written already: `destination` is a start
    reserved for it, or `to_instance_id` an idle instance that takes its requests.
    """

    instance_id: str
    epoch: int
    host_id: str
    endpoint: str
    model: str
    # Predicted, from the decision until its GPUs are free.
    seconds: float
    migration_id: str = ""
    transfer: str = "exact"
    destination: StartPlan | None = None
    to_instance_id: str = ""
    to_epoch: int = 0
    to_host_id: str = ""
    to_endpoint: str = ""

    @property
    def is_moved(self) -> bool:
        return bool(self.migration_id)


@dataclass(frozen=True, slots=True)
class ColdStartInput:
    plan: StartPlan
    max_plans: int = 3
    # Markdown table of all candidates, shown in the Temporal UI.
    candidates_markdown: str = ""


@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """What each phase of a start really took; seconds. `first_token_s` is learned later, by the API."""

    queue_s: float = 0.0
    download_s: float = 0.0
    load_s: float = 0.0
    attach_s: float = 0.0
    control_s: float = 0.0
    total_s: float = 0.0
    tier: str = ""
    # Stood still for GPUs that others still held, beyond the arrival of its bytes.
    free_s: float = 0.0
    bytes_moved: int = 0
    # When the first byte moved towards DRAM, on the host's clock; 0: it was there already.
    moving_at_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ColdStartResult:
    instance_id: str
    host_id: str
    endpoint: str
    plans_tried: int
    phases: PhaseSeconds


@dataclass(frozen=True, slots=True)
class DownloadInput:
    host_id: str
    model: str
    checkpoint: CheckpointRef
    estimated_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DownloadReceipt:
    checkpoint_id: str
    manifest_digest: str
    size_bytes: int
    source_bytes: int
    elapsed_s: float
    was_present: bool
    came_from_peer: bool = False


@dataclass(frozen=True, slots=True)
class BringUpInput:
    plan: StartPlan
    # Seconds of a ModelDownload that had ended before: recorded with the rest.
    download_s: float = 0.0
    # The checkpoint may still be on its way from its source: join that download, and follow its bytes.
    fetch: bool = False


@dataclass(frozen=True, slots=True)
class BringUpReceipt:
    endpoint: str
    phases: PhaseSeconds


@dataclass(frozen=True, slots=True)
class ReplanInput:
    """Ask for another plan for the same instance after `failed_hosts` could not carry theirs out."""

    plan: StartPlan
    failed_hosts: list[str]
    failure: str
    # Those of failed_hosts whose agents merely did not answer: chosen again if no other host can.
    silent_hosts: list[str] = field(default_factory=list)
    # Instances that were to give way and did not: not asked again.
    spared: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReplanReceipt:
    # None: no other plan; the instance was marked failed and its GPUs were released.
    plan: StartPlan | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AbandonInput:
    plan: StartPlan
    failure_code: str
    failure: str
    # "failed" or, for a start that was cancelled (delete), "stopped"
    outcome: str = "failed"


@dataclass(frozen=True, slots=True)
class AbandonReceipt:
    # A later plan of this very instance that nobody carries out yet: an operator has the start resumed.
    resumed: StartPlan | None = None


@dataclass(frozen=True, slots=True)
class RecordStartInput:
    plan: StartPlan
    phases: PhaseSeconds
    plans_tried: int = 1


@dataclass(frozen=True, slots=True)
class Nothing:
    """The receipt of an activity that has nothing to tell."""

    ok: bool = field(default=True)

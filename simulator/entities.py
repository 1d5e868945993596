"""Things of a simulated fleet that change: requests, instances, hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from firstlight.domain.fleet import Tier
from simulator.agenda import Event
from simulator.cache import Cache
from simulator.link import Background, Link


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A deployed model and what its engine does on this fleet's GPUs."""

    name: str
    size_bytes: int
    gpus: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    layers: int

    def prefill_s(self, tokens: int) -> float:
        return tokens / self.prefill_tokens_per_s


@dataclass(slots=True, eq=False)
class Request:
    index: int
    model: ModelSpec
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    # Since when it has no instance; moved forward when it is preempted.
    waiting_since_s: float = 0.0
    # Seconds without an instance in all, before its first token and after preemptions.
    waited_s: float = 0.0
    first_token_s: float | None = None
    # Tokens that its client has, from instances before the present one.
    tokens_done: int = 0
    began_s: float = 0.0
    decoding_from_s: float = 0.0
    end_s: float | None = None
    has_timed_out: bool = False
    start_tier: Tier | None = None
    finish: Event | None = None
    give_up: Event | None = None
    preemptions: int = 0
    migrations: int = 0
    paused_s: float = 0.0

    def tokens_now(self, now_s: float) -> int:
        """Prompt and what has been generated so far."""
        decoded = max(0.0, now_s - self.decoding_from_s) * self.model.decode_tokens_per_s
        return (
            self.prompt_tokens + self.tokens_done + min(int(decoded), self.output_tokens - self.tokens_done)
        )


class InstanceState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    # It takes no new request and gives its GPUs back when it is done.
    DRAINING = "draining"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Instance:
    instance_id: str
    model: ModelSpec
    host: SimHost
    gpus: tuple[int, ...]
    began_s: float
    # Where the bytes came from, and when they and the engine were there; known once it holds its GPUs.
    tier: Tier = Tier.REMOTE
    load_s: float = 0.0
    attach_s: float | None = None
    ready_s: float | None = None
    state: InstanceState = InstanceState.LOADING
    requests: dict[Request, None] = field(default_factory=dict)
    has_served: bool = False
    idle_since_s: float = 0.0
    expiry: Event | None = None
    # Who must give up GPUs before this one can have them.
    awaits: set[str] = field(default_factory=set)
    # Who gets GPUs of this one when it goes.
    heirs: list[Instance] = field(default_factory=list)
    # The destination of a move: nothing else is sent there before its requests have come.
    moves_from: Instance | None = None
    moves_to: Instance | None = None
    # What the policy thought a start would take, where it has an opinion.
    predicted_s: float | None = None
    # When its bytes are in DRAM, or would be there if they were kept.
    arrives_s: float = 0.0
    # Brought ahead of need: nobody waits for it.
    is_speculative: bool = False

    @property
    def is_open(self) -> bool:
        """Whether requests may be sent there."""
        return self.state is InstanceState.READY and self.moves_from is None and self.moves_to is None

    @property
    def is_idle(self) -> bool:
        return self.is_open and not self.requests


@dataclass(slots=True, eq=False)
class SimHost:
    """One GPU host: its GPUs, what its tiers hold, and its links."""

    host_id: str
    gpu_count: int
    gpu_memory_bytes: int
    dram: Cache
    ssd: Cache
    ssd_link: Link
    down_link: Link
    up_link: Link
    gpu_bytes_per_s: float
    holders: list[Instance | None] = field(default_factory=list)
    # When the bytes of a checkpoint that is on its way to DRAM will all be there.
    arriving: dict[str, float] = field(default_factory=dict)
    # What idle time of a link brings into DRAM meanwhile.
    background: dict[str, Background] = field(default_factory=dict)
    # Nearest tier of every checkpoint, kept as the caches change.
    tiers: dict[str, Tier] = field(default_factory=dict)

    def free_gpus(self) -> list[int]:
        if None not in self.holders:
            return []
        return [index for index, holder in enumerate(self.holders) if holder is None]

    def tier_of(self, model: ModelSpec) -> Tier:
        return self.tiers.get(model.name, Tier.REMOTE)

    def refresh(self, checkpoint: str) -> None:
        """Say anew which tier is nearest, after a cache changed."""
        if checkpoint in self.dram and checkpoint not in self.arriving and checkpoint not in self.background:
            self.tiers[checkpoint] = Tier.DRAM
        elif checkpoint in self.ssd:
            self.tiers[checkpoint] = Tier.SSD
        else:
            self.tiers.pop(checkpoint, None)

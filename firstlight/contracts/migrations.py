"""Messages of `LiveMigration`: an instance's running requests move to another host, streams unbroken."""

from __future__ import annotations

from dataclasses import dataclass, field

from firstlight.contracts.starts import StartPlan


@dataclass(frozen=True, slots=True)
class MovingInstance:
    """The instance that is to be emptied."""

    instance_id: str
    epoch: int
    host_id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class MigrationInput:
    """`destination` is reserved already, for an instance of its own; or an idle one is `reused`."""

    migration_id: str
    model: str
    source: MovingInstance
    # Exactly one of these two.
    destination: StartPlan | None
    reason: str
    # exact: the KV cache itself is sent. tokens: it is computed anew, which may change a near-tie.
    transfer: str = "exact"
    delta_tokens: int = 16
    reused: MovingInstance | None = None

    @property
    def destination_instance_id(self) -> str:
        return self._target.instance_id

    @property
    def destination_host_id(self) -> str:
        return self._target.host_id

    @property
    def destination_epoch(self) -> int:
        return self._target.epoch

    @property
    def _target(self) -> StartPlan | MovingInstance:
        target = self.destination or self.reused
        assert target is not None, "a migration goes somewhere"
        return target


@dataclass(frozen=True, slots=True)
class MoveInput:
    migration_id: str
    source: MovingInstance
    destination: MovingInstance
    transfer: str
    delta_tokens: int


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round, summed over the requests that took part; `seconds` is the slowest of them."""

    round: int
    requests: int
    tokens: int
    sent_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MoveReceipt:
    """What became of the requests. `held_s` is the longest that any one stood still at the source."""

    rounds: list[RoundRow] = field(default_factory=list)
    handed_over: int = 0
    moved_waiting: int = 0
    ended: int = 0
    failed: int = 0
    held_s: float = 0.0
    elapsed_s: float = 0.0
    error: str = ""
    # [tokens, seconds] of requests that were handed over, a bounded number: what estimates learn from.
    observations: list[list[float]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rounds)

    @property
    def sent_bytes(self) -> int:
        return sum(row.sent_bytes for row in self.rounds)

    @property
    def moved(self) -> int:
        return self.handed_over + self.moved_waiting


@dataclass(frozen=True, slots=True)
class ServeOnInput:
    """Give the source its route back: the migration came to nothing, and it still runs."""

    migration_id: str
    source: MovingInstance


@dataclass(frozen=True, slots=True)
class FinishMigrationInput:
    """Close the migration's row. `state` is completed, cancelled or failed."""

    migration_id: str
    state: str
    start_s: float = 0.0
    move: MoveReceipt = field(default_factory=MoveReceipt)
    failure: str = ""
    # Which attempt has ended: an operator may have granted another one since.
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class ResumedMigration:
    """Another attempt, with a place of its own: exactly one of `destination` and `reused`."""

    attempt: int
    destination: StartPlan | None
    reused: MovingInstance | None = None


@dataclass(frozen=True, slots=True)
class FinishMigrationReceipt:
    # None: the migration is over.
    resumed: ResumedMigration | None = None


@dataclass(frozen=True, slots=True)
class MigrationResult:
    migration_id: str
    destination_instance_id: str
    destination_host_id: str
    start_s: float
    move: MoveReceipt

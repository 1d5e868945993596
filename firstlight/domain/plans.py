"""What the scheduler can answer, and what it looked at on the way: plain values, no decision is made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

from firstlight.domain.estimator import StartEstimate
from firstlight.domain.names import HostId, InstanceId, ModelName


class VictimAction(StrEnum):
    """What becomes of a running instance whose GPUs are wanted."""

    # It has nothing to do: it ends.
    EVICT = "evict"
    # Its requests go on elsewhere.
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Victim:
    """One instance that gives up its GPUs. `seconds`: from the decision until they are free."""

    instance_id: InstanceId
    model_name: ModelName
    action: VictimAction
    # Where a moved one goes: GPUs that are free, or that an EVICT before it in the plan frees.
    to_host: HostId | None = None
    to_gpu_indices: tuple[int, ...] = ()
    seconds: float = 0.0
    # An idle instance of the same model at `to_host` that takes the requests: nothing is started there.
    to_instance_id: InstanceId | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One host looked at: an estimate, or the reason why it cannot take the start."""

    host_id: HostId
    estimate: StartEstimate | None
    reason: str | None = None
    # GPUs the start would take, lowest indices first.
    gpu_indices: tuple[int, ...] = ()
    # GPUs of the host that would stay free; kept while deciding only.
    spare_gpus: int = 0
    # Who would have to go first, in order; empty: the GPUs are free.
    victims: tuple[Victim, ...] = ()


class Candidates(Sequence[Candidate]):
    """One candidate per host, in the snapshot's order, written down when somebody first reads them.

    A decision among a thousand hosts needs a thousand figures, but not a thousand explanations.
    """

    __slots__ = ("_explain", "_length", "_rows")

    def __init__(self, explain: Callable[[], tuple[Candidate, ...]], *, length: int) -> None:
        self._explain = explain
        self._length = length
        self._rows: tuple[Candidate, ...] | None = None

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        return self._written()[index]

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._written() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._length)

    def __repr__(self) -> str:
        return repr(self._written())

    def _written(self) -> tuple[Candidate, ...]:
        if self._rows is None:
            self._rows = self._explain()
        return self._rows


@dataclass(frozen=True, slots=True)
class Place:
    host_id: HostId
    gpu_indices: tuple[int, ...]
    estimate: StartEstimate
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Migrate:
    """Start on GPUs that others hold: every victim goes, in this order, then the start takes its GPUs.

    Evictions come first; one may be on another host, where it makes room for a move. The moves run side by
    side, and so does the way of the start's own bytes into this host's DRAM: `estimate.free_s` is only what
    the victims take longer than that (all they take where the checkpoint is larger than the pool).
    """

    host_id: HostId
    gpu_indices: tuple[int, ...]
    victims: tuple[Victim, ...]
    estimate: StartEstimate
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start: `instance_id` (same model) is on its way, or a GPU is expected to come free.

    `ready_in_s`: until that instance serves, or until those GPUs are free and it is time to ask again.
    """

    reason: str
    ready_in_s: float | None
    instance_id: InstanceId | None
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    retry_after_s: float
    candidates: Sequence[Candidate]


Decision = Place | Migrate | Wait | Reject

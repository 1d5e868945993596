"""What a start or a move under way says of itself: for who looks on, never for who decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProgress:
    """Where one start stands; every word tells all of it, so that one that is lost is not missed."""

    instance_id: str
    epoch: int
    # queue, download, load, free, attach or control: as a start's prediction names its parts.
    phase: str
    # The phase has gone on for so long.
    phase_s: float
    # Of what this phase moves; a total of 0: it moves nothing, or nobody knows how much.
    bytes_done: int = 0
    bytes_total: int = 0
    # Seconds of the phases that have ended.
    done: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """How far the requests of one migration are, in its present attempt."""

    migration_id: str
    source_instance_id: str
    source_epoch: int
    move_s: float
    rounds: int = 0
    tokens: int = 0
    sent_bytes: int = 0
    # Requests that are at the destination, and those that are still to move.
    moved: int = 0
    left: int = 0


Progress = StartProgress | MoveProgress

"""Messages of `HostDrain`: everything a host runs moves elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DrainInput:
    host_id: str
    reason: str = "the host is being drained"


@dataclass(frozen=True, slots=True)
class MoveOffReceipt:
    """`left` instances still live there; `stuck` says of each that has nowhere to go, why."""

    left: int
    begun: int = 0
    moving: int = 0
    stuck: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DrainResult:
    host_id: str
    begun: int

"""What is kept warm and what is brought nearer: messages, and the activities that decide it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from temporalio import activity


@dataclass(frozen=True, slots=True)
class KeepAliveInput:
    instance_id: str
    epoch: int
    # How long it has been idle already.
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class KeepAliveReceipt:
    """How long this instance is to be kept while idle, and where that comes from."""

    keep_alive_s: float
    basis: str = ""


@dataclass(frozen=True, slots=True)
class LookAheadInput:
    """Nothing is asked: the fleet and its histories are in Postgres, the budget in the worker's settings."""


@dataclass(frozen=True, slots=True)
class LookAheadReceipt:
    # One sentence per thing that was set going.
    done: list[str] = field(default_factory=list)


class WarmthActivities(ABC):
    """Run on any control worker."""

    @activity.defn(name="decide_keep_alive")
    @abstractmethod
    async def decide_keep_alive(self, request: KeepAliveInput) -> KeepAliveReceipt:
        """Ask the keep-alive policy about one instance. Changes nothing."""

    @activity.defn(name="look_ahead")
    @abstractmethod
    async def look_ahead(self, request: LookAheadInput) -> LookAheadReceipt:
        """Bring likely models nearer within the budget, tell stores what is likely. Best effort."""

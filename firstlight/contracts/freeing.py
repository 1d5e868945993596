"""Messages of a start that others give way to, and what its victims' migrations are asked."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.contracts.migrations import MigrationInput, MovingInstance
from firstlight.contracts.starts import PlannedVictim, StartPlan


@dataclass(frozen=True, slots=True)
class EvictInput:
    """End an idle instance: `reason` is shown to operators."""

    instance_id: str
    epoch: int
    host_id: str
    endpoint: str
    model: str
    reason: str
    # For a request that comes in the very moment its route is taken away.
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class JoinMigrationInput:
    migration_id: str


def eviction_of(plan: StartPlan, victim: PlannedVictim) -> EvictInput:
    return EvictInput(
        instance_id=victim.instance_id,
        epoch=victim.epoch,
        host_id=victim.host_id,
        endpoint=victim.endpoint,
        model=victim.model,
        reason=f"it was idle and made room for {plan.model} ({plan.instance_id})",
    )


def migration_of(plan: StartPlan, victim: PlannedVictim) -> MigrationInput:
    """The migration whose row and destination were written with the plan."""
    reused = None
    if victim.destination is None:
        reused = MovingInstance(victim.to_instance_id, victim.to_epoch, victim.to_host_id, victim.to_endpoint)
    return MigrationInput(
        migration_id=victim.migration_id,
        model=victim.model,
        source=MovingInstance(victim.instance_id, victim.epoch, victim.host_id, victim.endpoint),
        destination=victim.destination,
        reason=f"it makes room for {plan.model}",
        transfer=victim.transfer,
        reused=reused,
    )

"""What was done about one workflow, or would be: the same for a person's terminal and a program's JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from firstlight.contracts.migrations import ResumedMigration
from firstlight.contracts.starts import StartPlan
from firstlight.domain.errors import FirstlightError


class How(StrEnum):
    FROM_FAILURE = "from-failure"
    FROM_START = "from-start"
    VERIFY = "verify"


class Verdict(StrEnum):
    DONE = "done"
    WOULD = "would"  # a rehearsal: nothing was changed
    NOTHING = "nothing"  # asked before, or no longer needed
    REFUSED = "refused"
    SAME = "same"  # verified: today's code takes the recorded steps
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """GPUs that a replay holds, or would. `seconds` is the estimate of the start."""

    instance_id: str
    host_id: str
    gpu_indices: tuple[int, ...]
    epoch: int | None
    tier: str
    seconds: float

    def __str__(self) -> str:
        gpus = ", ".join(str(index) for index in self.gpu_indices)
        under = f" under epoch {self.epoch}" if self.epoch is not None else ""
        return (
            f"GPU {gpus} of {self.host_id} for {self.instance_id}{under}, from {self.tier}, "
            f"predicted {self.seconds:.2f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    workflow_id: str
    how: str
    verdict: Verdict
    sentence: str
    code: str = ""
    reserves: Reservation | None = None
    # Where it goes on: of the same workflow unless named.
    new_run_id: str = ""
    new_workflow_id: str = ""
    details: tuple[str, ...] = field(default=())

    @property
    def is_bad(self) -> bool:
        return self.verdict in (Verdict.REFUSED, Verdict.DIFFERS)


def refusal(workflow_id: str, how: str, error: FirstlightError) -> Report:
    return Report(
        workflow_id=workflow_id, how=how, verdict=Verdict.REFUSED, sentence=error.message, code=error.code
    )


def reservation_of(plan: StartPlan, *, is_rehearsal: bool) -> Reservation:
    # A rehearsed epoch is never used.
    return Reservation(
        instance_id=plan.instance_id,
        host_id=plan.host_id,
        gpu_indices=tuple(plan.gpu_indices),
        epoch=None if is_rehearsal else plan.epoch,
        tier=plan.estimate.tier,
        seconds=plan.estimate.total_s,
    )


def reservation_for(resumed: ResumedMigration, *, is_rehearsal: bool) -> Reservation | None:
    """None when the destination serves already: nothing is reserved."""
    if resumed.destination is None:
        return None
    return reservation_of(resumed.destination, is_rehearsal=is_rehearsal)

"""What every replay is given: the cluster, the database, the run as it was found and as it was recorded."""

from __future__ import annotations

from dataclasses import dataclass

from temporalio.client import Client

from firstlight.database.connection import Database
from firstlight.domain.errors import InvalidSettings
from firstlight.recovery.found import FoundWorkflow
from firstlight.recovery.recorded import Recorded
from firstlight.recovery.report import How, Report, Reservation, Verdict
from firstlight.recovery.reset_point import ResetPoint
from firstlight.recovery.temporal_acts import reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    client: Client
    database: Database
    found: FoundWorkflow
    recorded: Recorded
    how: How
    # Who asks, for the histories and the audit log.
    actor: str
    is_rehearsal: bool

    @property
    def was_cut_off(self) -> bool:
        """It did not fail by itself: somebody terminated it, or its time ran out."""
        return self.found.status in ("terminated", "timed_out")

    @property
    def reason(self) -> str:
        return f"replayed {self.how} by {self.actor}"

    async def reset(self, point: ResetPoint) -> str:
        return await reset(self.client, self.found, point, reason=self.reason)

    def tell(
        self,
        sentence: str,
        *,
        reserves: Reservation | None = None,
        new_run_id: str = "",
        new_workflow_id: str = "",
    ) -> Report:
        """The report of what was done, or would be."""
        return Report(
            workflow_id=self.found.workflow_id,
            how=self.how,
            verdict=Verdict.WOULD if self.is_rehearsal else Verdict.DONE,
            sentence=sentence,
            reserves=reserves,
            new_run_id=new_run_id,
            new_workflow_id=new_workflow_id,
        )


def needed(database: Database | None) -> Database:
    """Raises: InvalidSettings."""
    if database is None:
        raise InvalidSettings(
            "a replay reserves GPUs in the database: name it with FIRSTLIGHT_DATABASE_URL",
            setting="FIRSTLIGHT_DATABASE_URL",
        )
    return database

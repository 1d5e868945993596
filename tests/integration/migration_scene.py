"""An instance that runs on one host, and a migration of it to another, in the small world of workflows."""

from __future__ import annotations

from dataclasses import replace

from temporalio.client import WorkflowExecutionStatus
from workflow_world import World

from firstlight.contracts import naming
from firstlight.contracts.migrations import FinishMigrationInput, MigrationInput, MovingInstance
from firstlight.contracts.starting import start_migration


class Scene:
    """An instance that runs on host a, and a migration of it to host b."""

    def __init__(self, here: World) -> None:
        self.here = here
        self.source = here.plan("a", instance=f"source-{here.run_id}")
        self.destination = replace(here.plan("b", instance=f"there-{here.run_id}"), epoch=9)

    async def run_source(self) -> None:
        await (await self.here.start(self.source)).result()

    async def begin(self, *, reused: MovingInstance | None = None) -> str:
        source = self.source
        request = MigrationInput(
            migration_id=naming.migration_workflow_id(source.instance_id, 1),
            model=source.model,
            source=MovingInstance(source.instance_id, source.epoch, source.host_id, "127.0.0.1:4000"),
            destination=None if reused is not None else self.destination,
            reused=reused,
            reason="an operator asked",
        )
        handle = await start_migration(self.here.client, request)
        self.here.started += [
            handle.id,
            naming.cold_start_id(source.model, self.destination.instance_id),
            naming.instance_workflow_id(self.destination.instance_id),
        ]
        return handle.id

    async def status_of(self, instance_id: str) -> WorkflowExecutionStatus | None:
        return await self.here.status(naming.instance_workflow_id(instance_id))

    def ended(self) -> FinishMigrationInput:
        [finished] = self.here.control.script.requests("finish_migration")
        return finished

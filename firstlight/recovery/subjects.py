"""What a workflow is about, read from its recorded input: instances, hosts, a checkpoint, a migration."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.contracts import naming
from firstlight.contracts.draining import DrainInput
from firstlight.contracts.hosts import HostInput
from firstlight.contracts.instances import InstanceInput
from firstlight.contracts.migrations import MigrationInput
from firstlight.contracts.starts import ColdStartInput, DownloadInput
from firstlight.recovery.recorded import Recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    instance_ids: tuple[str, ...] = ()
    host_ids: tuple[str, ...] = ()
    # It is about all that these hosts run.
    has_whole_hosts: bool = False
    checkpoint_id: str = ""
    migration_id: str = ""
    # Others that carry on what this one began.
    workflow_ids: tuple[str, ...] = ()


async def subjects_of(recorded: Recorded, workflow_type: str) -> Subjects:
    """Raises: InvalidInput for an input of another shape."""
    if workflow_type == naming.COLD_START:
        plan = (await recorded.input(ColdStartInput)).plan
        download = naming.download_id(plan.checkpoint.checkpoint_id, plan.host_id)
        return Subjects(
            instance_ids=(plan.instance_id,),
            host_ids=(plan.host_id,),
            checkpoint_id=plan.checkpoint.checkpoint_id,
            workflow_ids=(naming.instance_workflow_id(plan.instance_id), download),
        )
    if workflow_type == naming.LIVE_MIGRATION:
        return _of_migration(await recorded.input(MigrationInput))
    if workflow_type == naming.MODEL_DOWNLOAD:
        request: DownloadInput = await recorded.input(DownloadInput)
        return Subjects(host_ids=(request.host_id,), checkpoint_id=request.checkpoint.checkpoint_id)
    if workflow_type == naming.INSTANCE_LIFECYCLE:
        instance: InstanceInput = await recorded.input(InstanceInput)
        return Subjects(instance_ids=(instance.instance_id,), host_ids=(instance.host_id,))
    if workflow_type in (naming.HOST_LIFECYCLE, naming.HOST_DRAIN):
        kind = HostInput if workflow_type == naming.HOST_LIFECYCLE else DrainInput
        return Subjects(host_ids=((await recorded.input(kind)).host_id,), has_whole_hosts=True)
    return Subjects()


def _of_migration(request: MigrationInput) -> Subjects:
    source, destination_id = request.source, request.destination_instance_id
    return Subjects(
        instance_ids=(source.instance_id, destination_id),
        host_ids=(source.host_id, request.destination_host_id),
        migration_id=request.migration_id,
        workflow_ids=(
            naming.cold_start_id(request.model, destination_id),
            naming.instance_workflow_id(destination_id),
            naming.instance_workflow_id(source.instance_id),
        ),
    )

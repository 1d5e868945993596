"""`firstlight workflows cancel`, `terminate` and `signal`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.workflows_cluster import Cluster, actor, on_cluster, warn_unrecorded
from firstlight.cli.workflows_options import DryRun, WorkflowId
from firstlight.cli.workflows_reports import print_reports
from firstlight.recovery.report import Report

Reason = Annotated[str, typer.Option("--reason", help="Kept in its history and in the audit log.")]
Fields = Annotated[
    str, typer.Option("--data", metavar="JSON", help='Its fields, like \'{"reason": "broken fan"}\'.')
]


def cancel_workflow(workflow_id: WorkflowId, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Ask a running workflow to undo itself and end: a start gives its GPUs back, a migration its route."""

    from firstlight.recovery import acts

    async def act(cluster: Cluster) -> Report:
        if not dry_run:
            warn_unrecorded(cluster)
        return await acts.cancel(
            cluster.client, cluster.database, workflow_id, actor=actor(), is_rehearsal=dry_run
        )

    print_reports([on_cluster(act)], as_json=as_json, is_one=True)


def terminate_workflow(
    workflow_id: WorkflowId,
    reason: Reason = "terminated by an operator",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """End a running workflow by force. Nothing is undone: try `cancel` first."""

    from firstlight.recovery import acts

    async def act(cluster: Cluster) -> Report:
        if not dry_run:
            warn_unrecorded(cluster)
        return await acts.terminate(
            cluster.client,
            cluster.database,
            workflow_id,
            reason=reason,
            actor=actor(),
            is_rehearsal=dry_run,
        )

    print_reports([on_cluster(act)], as_json=as_json, is_one=True)


def signal_workflow(
    workflow_id: WorkflowId,
    name: Annotated[str, typer.Argument(metavar="SIGNAL", help="stop or keep_alive of an instance.")],
    data: Fields = "{}",
    as_json: AsJson = False,
) -> None:
    """Tell a running workflow something. A name or field that it does not know is refused."""
    fields = _object(data)

    from firstlight.recovery import acts

    async def act(cluster: Cluster) -> Report:
        warn_unrecorded(cluster)
        return await acts.signal(
            cluster.client, cluster.database, workflow_id, name=name, fields=fields, actor=actor()
        )

    print_reports([on_cluster(act)], as_json=as_json, is_one=True)


# Any: fields of a JSON object.
def _object(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"--data is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter("--data must be a JSON object")
    return found

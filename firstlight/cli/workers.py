"""`firstlight workers`: versions of the control worker's code, where worker versioning is used."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, table

if TYPE_CHECKING:
    from firstlight.cli.workflows_cluster import Cluster

app = typer.Typer(
    no_args_is_help=True,
    help="Versions of control workers that run with FIRSTLIGHT_WORKER_BUILD_ID.",
    epilog="Example: firstlight workers promote 1.4.0",
)
BuildId = Annotated[str, typer.Argument(metavar="BUILD", help="Its FIRSTLIGHT_WORKER_BUILD_ID.")]
Within = Annotated[float, typer.Option("--within", help="Seconds to wait for a worker of it to poll.")]


@app.command("list", epilog="Example: firstlight workers list --json")
def list_workers(as_json: AsJson = False) -> None:
    """Versions, and which takes new workflows; a drained one has nothing left, and its workers may go."""
    from firstlight.cli.workflows_cluster import on_cluster
    from firstlight.launcher.worker_versions import list_versions

    found = on_cluster(lambda cluster: list_versions(cluster.client))
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        console.print("no control worker runs with a build id: all are unversioned")
        return
    shown = table("BUILD", "ROLE", "NEW WORKFLOWS")
    for one in found:
        ramped = sum(other.ramp_percent for other in found)
        share = 100.0 - ramped if one.role == "current" else one.ramp_percent
        shown.add_row(one.build_id, one.role, f"{share:g}%")
    console.print(shown)


@app.command(
    epilog="Examples: firstlight workers promote 1.4.0 · firstlight workers promote 1.4.0 --percent 10"
)
def promote(
    build_id: BuildId,
    percent: Annotated[
        float | None,
        typer.Option("--percent", min=0, max=100, help="Only this share of new workflows, to try it."),
    ] = None,
    within_s: Within = 60.0,
) -> None:
    """Let a version take new workflows; waits until a worker of it polls. May be repeated."""
    from firstlight.cli.workflows_cluster import actor, on_cluster, warn_unrecorded
    from firstlight.launcher import worker_versions
    from firstlight.recovery.written_down import written_down

    async def act(cluster: Cluster) -> None:
        warn_unrecorded(cluster)
        async with written_down(
            cluster.database,
            actor=actor(),
            act="worker promote",
            subject=f"worker/{build_id}",
            detail={"percent": 100.0 if percent is None else percent},
        ):
            if percent is None:
                await worker_versions.promote(cluster.client, build_id, within_s=within_s)
            else:
                await worker_versions.ramp(cluster.client, build_id, percent=percent, within_s=within_s)

    on_cluster(act)
    share = "" if percent is None else f"{percent:g}% of "
    console.print(f"{build_id} takes {share}new workflows")

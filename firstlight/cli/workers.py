"""`firstlight workers`: versions of the control worker's code, where worker versioning is used."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, table

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
    from firstlight.cli.workflows_cluster import on_cluster
    from firstlight.launcher import worker_versions

    if percent is None:
        on_cluster(lambda cluster: worker_versions.promote(cluster.client, build_id, within_s=within_s))
        console.print(f"{build_id} takes new workflows")
    else:
        share = percent
        on_cluster(
            lambda cluster: worker_versions.ramp(cluster.client, build_id, percent=share, within_s=within_s)
        )
        console.print(f"{build_id} takes {share:g}% of new workflows")

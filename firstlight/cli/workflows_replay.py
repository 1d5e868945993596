"""`firstlight workflows replay`: from its failure, from its start, or only to see whether it would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.workflows_cluster import Cluster, actor, on_cluster
from firstlight.cli.workflows_options import DryRun, Host, Limit, Model, Query, Since, Type, Yes, chosen
from firstlight.cli.workflows_reports import ask_before, print_reports, warn_of_more
from firstlight.recovery.report import How, Report

if TYPE_CHECKING:
    from firstlight.recovery.found import Search

Id = Annotated[str | None, typer.Argument(metavar="[ID]", help="Workflow id; or --all.")]
All = Annotated[bool, typer.Option("--all", help="All that failed, narrowed down by the options below.")]
FromFailure = Annotated[
    bool, typer.Option("--from-failure", help="Go on from the last good point with today's code.")
]
FromStart = Annotated[bool, typer.Option("--from-start", help="Run again with the same input.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Would today's code take the recorded steps? Changes nothing.")
]
RunId = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="With --verify: an earlier run of it.")
]


def replay_workflows(
    workflow_id: Id = None,
    from_failure: FromFailure = False,
    from_start: FromStart = False,
    verify: Verify = False,
    everything: All = False,
    since: Since = None,
    model: Model = None,
    host: Host = None,
    workflow_type: Type = None,
    query: Query = None,
    limit: Limit = 100,
    run: RunId = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Replay failed workflows; exactly one of --from-failure, --from-start and --verify says how.

    A start or a migration gets its GPUs reserved anew, under a new epoch, and you are told which. What has
    completed, runs, or was asked to stop is left alone; asking twice does nothing more.
    """
    from firstlight.recovery.found import search, search_latest
    from firstlight.recovery.replaying import replay

    how = _how(from_failure=from_failure, from_start=from_start, verify=verify)
    if (workflow_id is None) != everything:
        raise typer.BadParameter("name one workflow, or say --all")
    if run is not None and (how is not How.VERIFY or everything):
        raise typer.BadParameter("--run goes with --verify of one workflow: others replay the latest run")
    if workflow_id is not None and any((since, model, host, workflow_type, query)):
        raise typer.BadParameter("--since, --model, --host, --type and --query go with --all")

    async def one(cluster: Cluster, name: str) -> Report:
        return await replay(
            cluster.client,
            cluster.database,
            name,
            how=how,
            actor=actor(),
            run_id=run,
            is_rehearsal=dry_run,
        )

    if workflow_id is not None:
        print_reports([on_cluster(lambda at: one(at, workflow_id))], as_json=as_json, is_one=True)
        return
    # All of them, not only failed ones, are worth a look before a new release.
    wanted = chosen(
        is_failed=how is not How.VERIFY,
        since=since,
        model=model,
        host=host,
        workflow_type=workflow_type,
        query=query,
    )

    async def look(cluster: Cluster) -> Search:
        if how is How.VERIFY:
            return await search(cluster.client, wanted, limit=limit)
        return await search_latest(cluster.client, wanted, limit=limit)

    found = on_cluster(look)
    warn_of_more(found)
    if not dry_run and how is not How.VERIFY:
        ask_before(found.rows, f"Replay {how}", yes=yes)

    async def each(cluster: Cluster) -> list[Report]:
        # One after the other: each takes GPUs that the next must see as taken.
        names = dict.fromkeys(row.workflow_id for row in found.rows)
        return [await one(cluster, name) for name in names]

    print_reports(on_cluster(each), as_json=as_json, is_one=False)


def _how(*, from_failure: bool, from_start: bool, verify: bool) -> How:
    asked = [
        how
        for how, is_asked in (
            (How.FROM_FAILURE, from_failure),
            (How.FROM_START, from_start),
            (How.VERIFY, verify),
        )
        if is_asked
    ]
    if len(asked) != 1:
        raise typer.BadParameter("say exactly one of --from-failure, --from-start and --verify")
    return asked[0]

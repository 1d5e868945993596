"""`firstlight workflows show`: one run from top to bottom, for somebody who was just woken."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, seconds, table
from firstlight.cli.workflows_cluster import Cluster, on_cluster
from firstlight.cli.workflows_list import STYLES
from firstlight.cli.workflows_options import WorkflowId

if TYPE_CHECKING:
    from firstlight.recovery.showing import Shown
    from firstlight.settings import Settings

WIDTH = 30
STEP_STYLES = {"completed": "green", "failed": "red", "timed out": "red", "open": "yellow"}
RunId = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="An earlier run; default: the latest.")
]


def show_workflow(workflow_id: WorkflowId, run: RunId = None, as_json: AsJson = False) -> None:
    """Show one workflow: its steps, why it failed, its last heartbeat, and what it left behind."""

    from firstlight.recovery.showing import show

    async def look(cluster: Cluster) -> tuple[Shown, Settings]:
        return await show(cluster.client, cluster.database, workflow_id, run_id=run), cluster.settings

    shown, settings = on_cluster(look)
    if as_json:
        print_json(dataclasses.asdict(shown))
        return
    _print_head(shown, settings)
    _print_steps(shown)
    _print_failure(shown)
    _print_left(shown)


def _print_head(shown: Shown, settings: Settings) -> None:
    workflow = shown.workflow
    status = Text(workflow.status.replace("_", " "), style=STYLES.get(workflow.status, "dim"))
    console.print(Text.assemble((workflow.workflow_id, "bold"), "  ", status, f"  {workflow.workflow_type}"))
    if shown.details:
        console.print(f"  {escape(shown.details)}", soft_wrap=True)
    console.print(f"  run {workflow.run_id}")
    if settings.temporal_ui_url:
        path = f"namespaces/{settings.temporal_namespace}/workflows"
        console.print(
            f"  {settings.temporal_ui_url.rstrip('/')}/{path}/{workflow.workflow_id.replace('/', '%2F')}",
            soft_wrap=True,
        )
    if shown.task_attempt > 1:
        console.print(f"  [red]its code fails: workflow task tried {shown.task_attempt} times[/]")


def _print_steps(shown: Shown) -> None:
    if not shown.steps:
        return
    began_s = min(step.began_at_unix_s for step in shown.steps)
    end_s = max(step.ended_at_unix_s or step.began_at_unix_s for step in shown.steps)
    span_s = max(end_s - began_s, 1e-9)
    rows = table("  STEP", "OUTCOME", "TOOK", "TRIES", "")
    for step in shown.steps:
        length_s = (step.ended_at_unix_s or end_s) - step.began_at_unix_s
        before = min(WIDTH - 1, round((step.began_at_unix_s - began_s) / span_s * WIDTH))
        bar = " " * before + "█" * max(1, round(length_s / span_s * WIDTH))
        rows.add_row(
            f"  {escape(step.name)}",
            Text(step.outcome, style=STEP_STYLES.get(step.outcome, "dim")),
            seconds(length_s) if step.ended_at_unix_s else "-",
            str(step.attempt or "-"),
            Text(bar[: WIDTH + 1], style=STEP_STYLES.get(step.outcome, "dim")),
        )
    console.print(rows)
    for _, name in shown.signals:
        console.print(f"  signal {name}")


def _print_failure(shown: Shown) -> None:
    for one in shown.pending:
        told = "; ".join(str(link) for link in one.last_failure)
        console.print(
            f"  [yellow]{one.name}[/] is {one.state}, try {one.attempt}{': ' + escape(told) if told else ''}",
            soft_wrap=True,
        )
    if shown.failure:
        console.print("[bold]Why it failed[/]")
    for depth, link in enumerate(shown.failure):
        console.print(f"  {'  ' * depth}[red]{escape(str(link))}[/]", soft_wrap=True)
    if shown.last_heartbeat is not None:
        console.print(f"[bold]Last heartbeat[/]  {escape(json.dumps(shown.last_heartbeat))}", soft_wrap=True)


def _print_left(shown: Shown) -> None:
    console.print("[bold]What there is of it[/]")
    for one in shown.left_behind:
        style = "yellow" if one.holds else "dim"
        console.print(Text.assemble("  ", (f"{one.where:9}", style), f" {one.what}"), soft_wrap=True)
    if not shown.left_behind:
        console.print("  nothing")
    for sentence in shown.not_looked_at:
        console.print(f"  [dim]not looked at: {escape(sentence)}[/]", soft_wrap=True)

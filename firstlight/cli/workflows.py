"""`firstlight workflows`: what an operator does about workflows, above all those that failed.

Straight to Temporal and Postgres, as the roles are: it works when the API does not.
"""

from __future__ import annotations

import typer

from firstlight.cli.workflows_acts import cancel_workflow, signal_workflow, terminate_workflow
from firstlight.cli.workflows_list import list_workflows
from firstlight.cli.workflows_replay import replay_workflows
from firstlight.cli.workflows_show import show_workflow

app = typer.Typer(
    no_args_is_help=True,
    help="Find, read and replay workflows. FIRSTLIGHT_TEMPORAL_* and FIRSTLIGHT_DATABASE_URL name the "
    "cluster.",
    epilog="\n\n".join(
        (
            "A start failed at night:",
            "firstlight workflows list --failed --since 2h",
            "firstlight workflows show cold-start/qwen/i-1f2e",
            "firstlight workflows replay cold-start/qwen/i-1f2e --from-failure --dry-run",
        )
    ),
)

app.command(
    "list",
    epilog="Examples: firstlight workflows list --failed --since 2h · "
    "firstlight workflows list --failed --model qwen --type ColdStart --json",
)(list_workflows)
app.command("show", epilog="Example: firstlight workflows show cold-start/qwen/i-1f2e")(show_workflow)
app.command(
    "replay",
    epilog="Examples: firstlight workflows replay cold-start/qwen/i-1f2e --from-failure · "
    "firstlight workflows replay --all --from-start --host host-b --since 1d --dry-run · "
    "firstlight workflows replay --all --verify",
)(replay_workflows)
app.command("cancel", epilog="Example: firstlight workflows cancel cold-start/qwen/i-1f2e")(cancel_workflow)
app.command("terminate", epilog='Example: firstlight workflows terminate drain/host-a --reason "wrong host"')(
    terminate_workflow
)
app.command(
    "signal",
    epilog="Example: firstlight workflows signal instance/i-1f2e keep_alive --data '{\"keep_alive_s\": 60}'",
)(signal_workflow)

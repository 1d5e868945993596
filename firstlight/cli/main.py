"""The `firstlight` command: one file per group of commands, errors and exit codes in one place.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from firstlight.cli import (
    audit,
    chat,
    checkpoint,
    deploy,
    estimates,
    explain,
    fleet,
    health,
    keys,
    logs,
    migrations,
    models,
    serve,
    settings,
    simulate,
    starts,
    status,
    up,
    upgrade_database,
    workers,
    workflows,
)
from firstlight.cli import demo as demonstration
from firstlight.cli.ending import end
from firstlight.domain.errors import FirstlightError

app = typer.Typer(
    name="firstlight",
    help="Serverless inference for LLMs: many models, few GPUs, nothing kept warm that need not be.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (
    up,
    status,
    deploy,
    models,
    chat,
    fleet,
    starts,
    explain,
    estimates,
    migrations,
    audit,
    logs,
    simulate,
    demonstration,
    upgrade_database,
    settings,
    health,
):
    module.register(app)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(serve.app, name="serve")
app.add_typer(workflows.app, name="workflows")
app.add_typer(workers.app, name="workers")
app.add_typer(keys.app, name="keys")


def run() -> None:
    """Entry point of the console script."""
    try:
        _run()
    except SystemExit as asked:
        end(asked)
        raise


def _run() -> None:
    try:
        app()
    except FirstlightError as error:
        sys.stderr.write(f"firstlight: {error.message}\n")
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from flushing into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None

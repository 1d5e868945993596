"""`firstlight serve ROLE`: one role as a process of its own, for clusters and for the local launcher."""

from __future__ import annotations

import typer

# Every line can be typed as it stands, in this order, each role in a terminal of its own.
EXAMPLE = (
    "export FIRSTLIGHT_DATABASE_URL=postgresql://postgres@localhost/firstlight",
    "export FIRSTLIGHT_TEMPORAL_ADDRESS=localhost:7233",
    "firstlight upgrade-database",
    "firstlight serve control-worker",
    "FIRSTLIGHT_HOST_IDS=gpu-7 firstlight serve gpu-host",
    "FIRSTLIGHT_API_PORT=8080 firstlight serve api",
)

app = typer.Typer(
    no_args_is_help=True,
    help="Run one role in the foreground; settings come from FIRSTLIGHT_* variables.",
    epilog="\n\n".join(("A cluster on an existing Postgres and Temporal:", *EXAMPLE)),
)


@app.command(epilog="Example: FIRSTLIGHT_API_PORT=8080 firstlight serve api")
def api() -> None:
    """The front end: OpenAI-compatible API, admin routes, placement.

    FIRSTLIGHT_DATABASE_URL and FIRSTLIGHT_TEMPORAL_ADDRESS name the cluster, as for every role.
    """
    from firstlight.launcher.api_server import main

    main()


@app.command("control-worker", epilog="Example: firstlight serve control-worker")
def control_worker() -> None:
    """Workflows and their control-plane activities; run as many as you like."""
    from firstlight.launcher.control_worker import main

    main()


@app.command("host-agent", epilog="Run by gpu-host; by itself only for trials.")
def host_agent() -> None:
    """The Temporal worker of one GPU host."""
    from firstlight.launcher.host_agent import main

    main()


@app.command("gpu-host", epilog="Example: FIRSTLIGHT_HOST_IDS=gpu-7 firstlight serve gpu-host")
def gpu_host() -> None:
    """One GPU host: checkpoint store, engines and host agent. FIRSTLIGHT_HOST_IDS names it.

    Others reach it at FIRSTLIGHT_HOST_BIND_ADDRESS, its address on the private network.
    """
    from firstlight.launcher.gpu_host import main

    main()

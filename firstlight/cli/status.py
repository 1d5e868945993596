"""`firstlight status`: is it up, and where is everything."""

from __future__ import annotations

import typer

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson
from firstlight.cli.output import console, print_json
from firstlight.domain.errors import ApiUnreachable, FirstlightError


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: firstlight status --json")(status)


def status(api: ApiUrl = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Say whether Firstlight answers, and list its parts. Exit code 1 when it does not."""
    with ApiClient(api, key) as client:
        found = _gather(client)
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            text = ", ".join(value) if isinstance(value, list) else value
            console.print(
                f"{name.replace('_', ' '):12} {'-' if text in ('', None) else text}", soft_wrap=True
            )
    if not found["ready"]:
        raise typer.Exit(1)


def _gather(client: ApiClient) -> dict[str, object]:
    found: dict[str, object] = {"api": client.url, "ready": _is_ready(client)}
    hosts = client.get("/admin/v1/hosts")["hosts"]
    instances = client.get("/admin/v1/instances", ended=0)["instances"]
    found["hosts"] = sum(host["state"] == "ready" for host in hosts)
    found["models"] = len(client.get("/admin/v1/models")["models"])
    found["instances"] = sum(one["state"] == "ready" for one in instances)
    found.update(_local_run(client.url))
    return found


def _is_ready(client: ApiClient) -> bool:
    try:
        client.get("/readyz")
    except ApiUnreachable:
        raise
    except FirstlightError:
        return False
    return True


def _local_run(api_url: str) -> dict[str, object]:
    """Addresses and processes of the run on this machine, if the API asked is its own."""
    from firstlight.launcher.process_marks import is_running
    from firstlight.launcher.run_file import read_run
    from firstlight.settings import read_settings

    record = read_run(read_settings().state_dir)
    if record is None or record.api_url != api_url:
        return {}
    running = [name for name, process in record.processes.items() if is_running(process)]
    return {"temporal_ui": record.temporal_ui_url, "roles": running}

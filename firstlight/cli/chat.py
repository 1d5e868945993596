"""`firstlight chat`: talk with a model; a cold one is started by the first message."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.status import Status

from firstlight.cli.chat_stream import Finished, Piece, Waiting, stream_chat
from firstlight.cli.client import ApiClient
from firstlight.cli.interrupts import hearing_interrupts
from firstlight.cli.options import ApiKey, ApiUrl, AsJson, ModelArgument
from firstlight.cli.output import console, print_json, seconds
from firstlight.domain.errors import FirstlightError


def register(app: typer.Typer) -> None:
    app.command(
        epilog='Examples: firstlight chat qwen "Why is the sky blue?" · firstlight chat qwen (interactive)'
    )(chat)


def chat(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="One message; interactive without it.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0)] = None,
    api: ApiUrl = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Talk with MODEL; the answer streams as it is made. With --json, PROMPT's comes whole."""
    if as_json and prompt is None:
        raise typer.BadParameter("--json prints the answer to one message: give a PROMPT with it")
    messages = [{"role": "system", "content": system}] if system else []
    options = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in options.items() if value is not None}
    with ApiClient(api, key) as client:
        if prompt is None:
            _converse(client, model, messages, given)
            return
        messages.append({"role": "user", "content": prompt})
        if as_json:
            body = {"model": model, "messages": messages, **given}
            print_json(client.post("/v1/chat/completions", body))
            return
        ask(client, model, messages, given)


def ask(
    client: ApiClient, model: str, messages: list[dict[str, str]], options: dict[str, float | int]
) -> str:
    """Stream one answer to the terminal, with a line of figures below it; returns its text.

    However it ends, the cursor stands at the beginning of a line.
    """
    began_s = time.monotonic()
    first_s: float | None = None
    text = ""
    try:
        with (
            hearing_interrupts() as check_interrupt,
            console.status(f"waiting for {model}", spinner="dots") as waiting,
        ):
            for event in stream_chat(client, model, messages, options):
                check_interrupt()
                if isinstance(event, Waiting):
                    _show_phase(waiting, model, event.phase)
                elif isinstance(event, Piece):
                    if first_s is None:
                        first_s = time.monotonic()
                        waiting.stop()
                    text += event.text
                    _write(event.text)
                else:
                    _write("\n")
                    _show_figures(event, began_s, first_s)
    except (KeyboardInterrupt, FirstlightError):
        if text:
            _write("\n")
        raise
    return text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_phase(waiting: Status, model: str, phase: str) -> None:
    waiting.update(f"waiting for {model}" + (f": {phase}" if phase else ""))


def _show_figures(end: Finished, began_s: float, first_s: float | None) -> None:
    now_s = time.monotonic()
    if first_s is None:
        console.print("[dim](no text)[/]")
        return
    parts = [f"first token after {seconds(first_s - began_s)}"]
    if end.completion_tokens and end.completion_tokens > 1 and now_s > first_s:
        parts.append(
            f"{end.completion_tokens} tokens, {(end.completion_tokens - 1) / (now_s - first_s):.0f}/s"
        )
    if end.reason == "length":
        parts.append("cut at the token limit")
    console.print(f"[dim]{' · '.join(parts)}[/]")


def _converse(
    client: ApiClient, model: str, messages: list[dict[str, str]], options: dict[str, float | int]
) -> None:
    console.print(f"[dim]talking with {model}; Ctrl-C ends an answer, Ctrl-D the talk[/]")
    while True:
        try:
            line = console.input("[bold]>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            messages.append({"role": "assistant", "content": ask(client, model, messages, options)})
        except KeyboardInterrupt:
            console.print("[dim](interrupted)[/]")
            messages.pop()
        except FirstlightError as failure:
            console.print(f"[red]{failure.message}[/]", soft_wrap=True)
            messages.pop()

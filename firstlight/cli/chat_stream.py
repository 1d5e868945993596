"""One streamed chat completion, as text pieces and what the API says while the model is cold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from firstlight.cli.client import ApiClient, error_from
from firstlight.domain.errors import FirstlightError


@dataclass(frozen=True, slots=True)
class Waiting:
    """A keep-alive of the API: `phase` is its text, empty when it says nothing."""

    phase: str


@dataclass(frozen=True, slots=True)
class Piece:
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    reason: str
    completion_tokens: int | None


Event = Waiting | Piece | Finished


def stream_chat(
    client: ApiClient, model: str, messages: list[dict[str, str]], options: Mapping[str, float | int]
) -> Iterator[Event]:
    """Ends with one Finished. Raises: FirstlightError, also for a stream cut before its end."""
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    reason, tokens = "", None
    for line in client.stream("/v1/chat/completions", body):
        if line.startswith(":"):
            yield Waiting(line[1:].strip())
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            yield Finished(reason, tokens)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise error_from(chunk["error"])
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        for choice in chunk.get("choices", ()):
            reason = choice.get("finish_reason") or reason
            if text := _text_of(choice):
                yield Piece(text)
    raise FirstlightError("the answer was cut off before its end; ask again")


# Any: one choice of a chunk.
def _text_of(choice: Mapping[str, Any]) -> str:
    return str((choice.get("delta") or {}).get("content") or "")

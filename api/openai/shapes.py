"""Answers as bytes. Assembled by hand: on the warm path a model class per token would cost more than all
the rest of the API together.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from api.openai.choice_text import TokenEntry
from api.text.tool_calls import CallPiece

DONE = b"data: [DONE]\n\n"


def to_json(value: object) -> str:
    # Replaces lone surrogates on the way to bytes; ASCII escapes would double the size of most scripts.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(payload: str) -> bytes:
    return f"data: {payload}\n\n".encode("utf-8", errors="replace")


def usage_json(prompt_tokens: int, completion_tokens: int) -> str:
    return (
        f'{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},'
        f'"total_tokens":{prompt_tokens + completion_tokens}}}'
    )


class Shape(ABC):
    """One answer of one endpoint: same id, time and model in every piece.

    `usage` is the JSON to put beside a piece, or None to leave the field out.
    """

    def __init__(self, *, answer_id: str, kind: str, created: int, model: str) -> None:
        self._head = (
            f'{{"id":{to_json(answer_id)},"object":{to_json(kind)},"created":{created},'
            f'"model":{to_json(model)},"choices":['
        )

    def _piece(self, choice: str, usage: str | None) -> bytes:
        tail = "]}" if usage is None else f'],"usage":{usage}}}'
        return event(f"{self._head}{choice}{tail}")

    def usage_piece(self, usage: str) -> bytes:
        """The last piece before [DONE] when usage was asked for: no choices."""
        return self._piece("", usage)

    def whole(self, choices: Sequence[str], usage: str) -> bytes:
        """The answer of a request without `stream`."""
        return f'{self._head}{",".join(choices)}],"usage":{usage}}}'.encode("utf-8", errors="replace")

    @abstractmethod
    def opening(self, index: int, prefix: str, usage: str | None) -> bytes:
        """What comes before a choice's first text: may be nothing."""

    @abstractmethod
    def text_piece(
        self, index: int, text: str, entries: Sequence[TokenEntry] | None, usage: str | None
    ) -> bytes: ...

    @abstractmethod
    def finish_piece(self, index: int, finish_reason: str, usage: str | None) -> bytes: ...

    def calls_piece(self, index: int, calls: Sequence[CallPiece], usage: str | None) -> bytes:
        """Parts of calls of tools; only chats have any."""
        raise NotImplementedError

    @abstractmethod
    def choice(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenEntry] | None,
        finish_reason: str,
        calls: Sequence[CallPiece] = (),
    ) -> str: ...


class ChatChunks(Shape):
    """chat.completion.chunk, and with `whole` chat.completion. `entries` None: no log-probabilities."""

    def opening(self, index: int, prefix: str, usage: str | None) -> bytes:
        return self._delta(index, '{"role":"assistant","content":""}', "null", "null", usage)

    def text_piece(
        self, index: int, text: str, entries: Sequence[TokenEntry] | None, usage: str | None
    ) -> bytes:
        return self._delta(index, f'{{"content":{to_json(text)}}}', _chat_logprobs(entries), "null", usage)

    def finish_piece(self, index: int, finish_reason: str, usage: str | None) -> bytes:
        return self._delta(index, "{}", "null", to_json(finish_reason), usage)

    def calls_piece(self, index: int, calls: Sequence[CallPiece], usage: str | None) -> bytes:
        return self._delta(index, f'{{"tool_calls":{_call_pieces(calls)}}}', "null", "null", usage)

    def choice(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenEntry] | None,
        finish_reason: str,
        calls: Sequence[CallPiece] = (),
    ) -> str:
        content = to_json(text if text or not calls else None)
        called = f',"tool_calls":{_whole_calls(calls)}' if calls else ""
        return (
            f'{{"index":{index},"message":{{"role":"assistant","content":{content},"refusal":null{called}}},'
            f'"logprobs":{_chat_logprobs(entries)},"finish_reason":{to_json(finish_reason)}}}'
        )

    def _delta(self, index: int, delta: str, logprobs: str, reason: str, usage: str | None) -> bytes:
        return self._piece(
            f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}', usage
        )


class CompletionChunks(Shape):
    """text_completion, streamed and whole. `echo` prefixes make token offsets begin behind them."""

    def __init__(self, *, answer_id: str, created: int, model: str, prefixes: Sequence[str]) -> None:
        super().__init__(answer_id=answer_id, kind="text_completion", created=created, model=model)
        self._prefixes = prefixes

    def opening(self, index: int, prefix: str, usage: str | None) -> bytes:
        return self.text_piece(index, prefix, None, usage) if prefix else b""

    def text_piece(
        self, index: int, text: str, entries: Sequence[TokenEntry] | None, usage: str | None
    ) -> bytes:
        return self._piece(self._choice(index, text, entries, "null"), usage)

    def finish_piece(self, index: int, finish_reason: str, usage: str | None) -> bytes:
        return self._piece(self._choice(index, "", None, to_json(finish_reason)), usage)

    def choice(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenEntry] | None,
        finish_reason: str,
        calls: Sequence[CallPiece] = (),
    ) -> str:
        return self._choice(index, self._prefixes[index] + text, entries, to_json(finish_reason))

    def _choice(self, index: int, text: str, entries: Sequence[TokenEntry] | None, reason: str) -> str:
        logprobs = _legacy_logprobs(entries, len(self._prefixes[index]))
        return f'{{"index":{index},"text":{to_json(text)},"logprobs":{logprobs},"finish_reason":{reason}}}'


def _call_pieces(calls: Sequence[CallPiece]) -> str:
    found: list[dict[str, object]] = []
    for piece in calls:
        function: dict[str, object] = {"arguments": piece.arguments}
        row: dict[str, object] = {"index": piece.index, "function": function}
        if piece.call_id is not None:
            function["name"] = piece.name
            row |= {"id": piece.call_id, "type": "function"}
        found.append(row)
    return to_json(found)


def _whole_calls(calls: Sequence[CallPiece]) -> str:
    found: list[dict[str, object]] = []
    for first in (piece for piece in calls if piece.call_id is not None):
        arguments = "".join(piece.arguments for piece in calls if piece.index == first.index)
        function = {"name": first.name, "arguments": arguments}
        found.append({"id": first.call_id, "type": "function", "function": function})
    return to_json(found)


# JSON knows no infinities; this is what OpenAI sends for a token that cannot be.
_IMPOSSIBLE = -9999.0


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE


def _chat_logprobs(entries: Sequence[TokenEntry] | None) -> str:
    if entries is None:
        return "null"
    content = [
        {
            "token": entry.piece.text,
            "logprob": _finite(entry.logprob),
            "bytes": list(entry.piece.data),
            "top_logprobs": [
                {"token": piece.text, "logprob": _finite(logprob), "bytes": list(piece.data)}
                for piece, logprob in entry.top
            ],
        }
        for entry in entries
    ]
    return to_json({"content": content, "refusal": None})


def _legacy_logprobs(entries: Sequence[TokenEntry] | None, base: int) -> str:
    if entries is None:
        return "null"
    return to_json(
        {
            "tokens": [entry.piece.text for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                {piece.text: _finite(logprob) for piece, logprob in entry.top} for entry in entries
            ],
            "text_offset": [base + entry.offset for entry in entries],
        }
    )

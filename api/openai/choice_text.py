"""One choice's tokens as text: detokenized, cut at stop strings, with log-probabilities beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.openai.calling import Calling
from api.text.model_text import ModelText, TokenPiece
from api.text.stop_strings import StopMatcher
from api.text.tool_calls import CallPiece
from firstlight.rpc import engine_pb2


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token of a log-probability list; `offset` is where its text begins in the choice's text."""

    piece: TokenPiece
    logprob: float
    top: tuple[tuple[TokenPiece, float], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that became certain. `tokens` counts all tokens of the choice so far."""

    index: int
    text: str
    tokens: int
    finish_reason: str | None = None
    entries: Sequence[TokenEntry] = ()
    calls: Sequence[CallPiece] = ()


class ChoiceText:
    """Fed with an engine's chunks. Once a delta has a finish_reason nothing more may be fed."""

    def __init__(
        self, index: int, text: ModelText, stops: Sequence[str], calling: Calling | None = None
    ) -> None:
        self.tokens = 0
        self._index = index
        self._text = text
        self._detokenizer = text.detokenizer()
        self._matcher = StopMatcher(stops)
        # Letters decoded so far, and letters let through.
        self._read = 0
        self._shown = 0
        self._entries: list[TokenEntry] = []
        self._calling = calling
        self._parser = None if calling is None else calling.parser()

    def feed(self, chunk: engine_pb2.GenerateChunk, *, logprobs: bool) -> Delta | None:
        """The delta of this chunk, if any text became certain or the choice ended."""
        shown = ""
        if chunk.has_token:
            self.tokens += 1
            if logprobs:
                self._entries.append(self._entry(chunk))
            shown = self._show(self._decoded(chunk.token_id))
        if self._matcher.is_stopped:
            return self._delta(shown, "stop")
        if not chunk.finish_reason:
            return self._news(shown) if shown else None
        shown += self._show(self._detokenizer.finish())
        if self._matcher.is_stopped:
            return self._delta(shown, "stop")
        tail = self._matcher.finish()
        self._shown += len(tail)
        return self._delta(shown + tail, chunk.finish_reason)

    def _decoded(self, token_id: int) -> str:
        if self._calling is not None and (marker := self._calling.markers.get(token_id)) is not None:
            # A special token, which is no text elsewhere.
            return self._detokenizer.finish() + marker
        return self._detokenizer.feed(token_id)

    def _show(self, piece: str) -> str:
        self._read += len(piece)
        shown = self._matcher.feed(piece)
        self._shown += len(shown)
        return shown

    def _news(self, shown: str) -> Delta | None:
        """None while what came may still become a call of a tool, or part of one that says nothing new."""
        delta = self._delta(shown, None)
        return delta if delta.text or delta.calls or delta.entries else None

    def _delta(self, shown: str, finish_reason: str | None) -> Delta:
        # A token is listed once its text is certain; those of the stop string itself never are.
        is_whole = finish_reason is not None and not self._matcher.is_stopped
        listed = [entry for entry in self._entries if is_whole or entry.offset < self._shown]
        self._entries = self._entries[len(listed) :]
        if self._calling is None or self._parser is None:
            return Delta(self._index, shown, self.tokens, finish_reason, listed)
        said, calls = self._parser.feed(shown)
        if finish_reason is not None:
            said += self._parser.finish()
            finish_reason = self._calling.finish_reason(finish_reason, calls=self._parser.count)
        return Delta(self._index, said, self.tokens, finish_reason, listed, calls)

    def _entry(self, chunk: engine_pb2.GenerateChunk) -> TokenEntry:
        return TokenEntry(
            piece=self._text.piece(chunk.token_id),
            logprob=chunk.logprob,
            top=tuple((self._text.piece(row.token_id), row.logprob) for row in chunk.top_logprobs),
            offset=self._read,
        )

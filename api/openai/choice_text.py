"""One choice's tokens as text: detokenized, cut at stop strings, with log-probabilities beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.text.model_text import ModelText, TokenPiece
from api.text.stop_strings import StopMatcher
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


class ChoiceText:
    """Fed with an engine's chunks. Once a delta has a finish_reason nothing more may be fed."""

    def __init__(self, index: int, text: ModelText, stops: Sequence[str]) -> None:
        self.tokens = 0
        self._index = index
        self._text = text
        self._detokenizer = text.detokenizer()
        self._matcher = StopMatcher(stops)
        # Letters decoded so far, and letters let through.
        self._read = 0
        self._shown = 0
        self._entries: list[TokenEntry] = []

    def feed(self, chunk: engine_pb2.GenerateChunk, *, logprobs: bool) -> Delta | None:
        """The delta of this chunk, if any text became certain or the choice ended."""
        shown = ""
        if chunk.has_token:
            self.tokens += 1
            if logprobs:
                self._entries.append(self._entry(chunk))
            shown = self._show(self._detokenizer.feed(chunk.token_id))
        if self._matcher.is_stopped:
            return self._delta(shown, "stop")
        if not chunk.finish_reason:
            return self._delta(shown, None) if shown else None
        shown += self._show(self._detokenizer.finish())
        if self._matcher.is_stopped:
            return self._delta(shown, "stop")
        tail = self._matcher.finish()
        self._shown += len(tail)
        return self._delta(shown + tail, chunk.finish_reason)

    def _show(self, piece: str) -> str:
        self._read += len(piece)
        shown = self._matcher.feed(piece)
        self._shown += len(shown)
        return shown

    def _delta(self, shown: str, finish_reason: str | None) -> Delta:
        # A token is listed once its text is certain; those of the stop string itself never are.
        is_whole = finish_reason is not None and not self._matcher.is_stopped
        listed = [entry for entry in self._entries if is_whole or entry.offset < self._shown]
        self._entries = self._entries[len(listed) :]
        return Delta(self._index, shown, self.tokens, finish_reason, listed)

    def _entry(self, chunk: engine_pb2.GenerateChunk) -> TokenEntry:
        return TokenEntry(
            piece=self._text.piece(chunk.token_id),
            logprob=chunk.logprob,
            top=tuple((self._text.piece(row.token_id), row.logprob) for row in chunk.top_logprobs),
            offset=self._read,
        )

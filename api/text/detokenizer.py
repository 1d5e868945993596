"""Token ids to text, one by one, such that the pieces put together are what decoding all at once gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

# What a decoder puts where bytes are not (or not yet) UTF-8.
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Two short windows of ids: `_settled`, whose text is out, and `_pending`, whose text may still change.

    The new text is decode(settled + pending) minus decode(settled): decoding behind the settled ids keeps
    the spaces that tokenizers strip from the first token of a text. Text is held while it ends in a
    replacement character (half a letter) or in a byte-fallback token (whose run is judged as a whole).
    """

    def __init__(
        self, decode: Decode, *, is_silent: Callable[[int], bool], is_fallback_byte: Callable[[int], bool]
    ) -> None:
        self._decode = decode
        self._is_silent = is_silent
        self._is_fallback_byte = is_fallback_byte
        self._settled: list[int] = []
        self._settled_text = ""
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that became certain with this token; often all of it, sometimes none."""
        # Special tokens must not enter a window: they decode to nothing, and a window of nothing would
        # make the next token look like the first of the text.
        if self._is_silent(token_id):
            return ""
        self._pending.append(token_id)
        if self._is_fallback_byte(token_id):
            return ""
        text = self._decode([*self._settled, *self._pending])
        if text.endswith(REPLACEMENT):
            return ""
        return self._settle(text)

    def finish(self) -> str:
        """What is still held; broken letters come out as replacement characters, as in a full decode."""
        if not self._pending:
            return ""
        return self._settle(self._decode([*self._settled, *self._pending]))

    def _settle(self, text: str) -> str:
        fresh = text[len(self._settled_text) :]
        self._settled, self._pending = self._pending, []
        self._settled_text = self._decode(self._settled)
        return fresh

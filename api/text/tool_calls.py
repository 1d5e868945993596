"""The text of an answer, parted into what is said and which tools are called, as it comes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

from api.text.call_reader import CallReader
from api.text.stop_strings import overlap
from api.text.tool_formats import ToolFormat

_SPACES = " \t\r\n"


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of call `index`: its beginning with `call_id` and `name`, or more of its arguments' JSON."""

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


class _At(Enum):
    BEGINNING = auto()
    TEXT = auto()
    BEFORE_CALL = auto()
    CALL = auto()
    BEHIND_CALL = auto()


class ToolCalls:
    """What looks like a call but is none, or names no tool of the request's, is text and stays text.

    The parting does not depend on how the answer is split into pieces. Spaces around calls are left out.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.count = 0
        self._form = form
        self._names = frozenset(names)
        self._at = _At.BEGINNING if form.may_open_bare else _At.TEXT
        self._held = ""
        # Of the call that is being read, until its name is known: to be given back if it is none.
        self._raw = ""
        self._reader = CallReader(form.arguments_key)
        self._has_begun = False

    def feed(self, text: str) -> tuple[str, list[CallPiece]]:
        """What became certain: text that is said, and pieces of calls."""
        said, pieces = "", list[CallPiece]()
        self._held += text
        while self._held:
            before = self._at, len(self._held)
            said += self._step(pieces)
            if (self._at, len(self._held)) == before:
                break
        return said, pieces

    def finish(self) -> str:
        """What is still held when the answer ends: text, unless it only surrounds calls."""
        if self._at is _At.BEHIND_CALL or (self._at is _At.CALL and self._has_begun):
            return ""
        left = self._raw + self._held
        self._held = self._raw = ""
        return "" if self.count and not left.strip() else left

    def _step(self, pieces: list[CallPiece]) -> str:
        match self._at:
            case _At.BEGINNING:
                return self._begin()
            case _At.TEXT:
                return self._text()
            case _At.BEFORE_CALL:
                return self._before_call()
            case _At.CALL:
                return self._call(pieces)
            case _At.BEHIND_CALL:
                return self._behind_call()

    def _begin(self) -> str:
        """Is the whole answer a call?"""
        start = self._held.lstrip(_SPACES)
        if start.startswith("{"):
            self._open(self._held[: len(self._held) - len(start)], start)
        elif start and (len(start) >= len(self._form.opening) or not self._form.opening.startswith(start)):
            self._at = _At.TEXT
        return ""

    def _text(self) -> str:
        said, opening, behind = self._held.partition(self._form.opening)
        if opening:
            trimmed = said.rstrip(_SPACES)
            self._open(said[len(trimmed) :] + opening, behind)
            return trimmed
        keep = overlap(said, self._form.opening)
        sure = said[: len(said) - keep].rstrip(_SPACES)
        self._held = said[len(sure) :]
        return sure

    def _open(self, raw: str, behind: str) -> None:
        self._at, self._raw, self._held = _At.BEFORE_CALL, raw, behind
        self._reader, self._has_begun = CallReader(self._form.arguments_key), False

    def _before_call(self) -> str:
        start = self._held.lstrip(_SPACES)
        if self._form.is_list and not self._has_begun and start.startswith("["):
            start = start[1:].lstrip(_SPACES)
        if not start or start == "[":
            return ""
        if not start.startswith("{"):
            return self._give_back()
        self._raw += self._held[: len(self._held) - len(start)]
        self._at, self._held = _At.CALL, start
        return ""

    def _call(self, pieces: list[CallPiece]) -> str:
        text, self._held = self._held, ""
        arguments = ""
        for position, letter in enumerate(text):
            shown = self._reader.feed(letter)
            if not self._has_begun:
                self._raw += letter
            if self._reader.is_broken or self._is_unknown():
                self._held = text[position + 1 :]
                return self._give_back()
            if self._reader.name is not None and not self._has_begun:
                self._begin_call(pieces, self._reader.name)
            arguments += shown
            if self._reader.is_done:
                self._held = text[position + 1 :]
                self._at = _At.BEHIND_CALL
                break
        if arguments:
            pieces.append(CallPiece(self.count - 1, arguments))
        return ""

    def _is_unknown(self) -> bool:
        return self._reader.name is not None and self._reader.name not in self._names

    def _begin_call(self, pieces: list[CallPiece], name: str) -> None:
        pieces.append(CallPiece(self.count, call_id=self._form.new_id(), name=name))
        self.count += 1
        self._has_begun, self._raw = True, ""

    def _behind_call(self) -> str:
        if self._form.closing:
            _, closing, behind = self._held.partition(self._form.closing)
            # Nothing but its end belongs between a call and its end.
            self._held = behind if closing else self._held[-len(self._form.closing) :]
            if closing:
                self._at = _At.TEXT
            return ""
        start = self._held.lstrip(_SPACES)
        self._held = start
        if start[:1] in (",", ";"):
            self._open(start[0], start[1:])
        elif start:
            self._held = start[1:] if start[0] == "]" else start
            self._at = _At.TEXT
        return ""

    def _give_back(self) -> str:
        given, self._raw = self._raw, ""
        self._at = _At.TEXT
        return given

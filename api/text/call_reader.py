"""One call of a tool, `{"name": …, "arguments": {…}}`, read letter by letter as a model writes it."""

from __future__ import annotations

import json
from enum import Enum, auto

_SPACES = " \t\r\n"


class _At(Enum):
    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    AFTER_VALUE = auto()


class CallReader:
    """`feed` gives the letters of the arguments as they come, as soon as the name is known.

    `is_broken`: this is no call, and nothing of it was given. `is_done`: the object is closed.
    """

    def __init__(self, arguments_key: str) -> None:
        self.name: str | None = None
        self.is_broken = False
        self.is_done = False
        self._arguments_key = arguments_key
        self._at = _At.START
        # How deep inside the value of a key of the call itself; and whether inside a string there.
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._key = ""
        self._text = ""
        self._has_arguments = False
        self._held = ""

    def feed(self, letter: str) -> str:
        """The arguments' text that became certain with this letter."""
        if self._at is _At.VALUE:
            return self._feed_value(letter)
        if self._at is _At.KEY and self._is_in_string:
            self._feed_key(letter)
        elif letter not in _SPACES:
            self._between(letter)
        return self._finish() if self.is_done else ""

    def _between(self, letter: str) -> None:
        match self._at, letter:
            case _At.START, "{":
                self._at = _At.KEY
            case _At.KEY, '"':
                self._is_in_string, self._text = True, '"'
            case ((_At.KEY | _At.AFTER_VALUE), "}"):
                self.is_done = True
            case _At.AFTER_VALUE, ",":
                self._at = _At.KEY
            case _At.COLON, ":":
                self._at, self._text = _At.VALUE, ""
            case _:
                self._break()

    def _feed_key(self, letter: str) -> None:
        self._text += letter
        if self._ends_string(letter):
            self._key = str(_parsed(self._text) or "")
            self._at = _At.COLON

    def _feed_value(self, letter: str) -> str:
        if not self._text and letter in _SPACES:
            return ""
        if self._is_in_string:
            self._text += letter
            if self._ends_string(letter) and self._depth == 0:
                return self._shown(letter) + self._end_value()
            return self._shown(letter)
        if self._depth == 0 and (letter in "},]" or letter in _SPACES):
            # Behind a number or a word.
            given = self._end_value()
            if letter not in _SPACES:
                self._between(letter)
            return given + (self._finish() if self.is_done else "")
        self._text += letter
        if letter == '"':
            self._is_in_string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            if self._depth == 0:
                return self._shown(letter) + self._end_value()
        return self._shown(letter)

    def _ends_string(self, letter: str) -> bool:
        if self._is_escaped:
            self._is_escaped = False
        elif letter == "\\":
            self._is_escaped = True
        elif letter == '"':
            self._is_in_string = False
            return True
        return False

    def _shown(self, letter: str) -> str:
        if self._key != self._arguments_key:
            return ""
        self._has_arguments = True
        if self.name is not None:
            return letter
        self._held += letter
        return ""

    def _end_value(self) -> str:
        self._at = _At.AFTER_VALUE
        if self._key != "name" or self.name is not None:
            return ""
        name = _parsed(self._text)
        if not isinstance(name, str) or not name:
            self._break()
            return ""
        self.name = name
        held, self._held = self._held, ""
        return held

    def _finish(self) -> str:
        if self.name is None:
            self._break()
            return ""
        return "" if self._has_arguments else "{}"

    def _break(self) -> None:
        # Once its name was given it is a call, however it goes on.
        self.is_done = True
        self.is_broken = self.name is None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None

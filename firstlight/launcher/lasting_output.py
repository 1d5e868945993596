"""An output that may go away: a closed window, a reader that ended. What is said then is lost, no more.

A launcher has processes to stop, in order, whether or not anybody reads about it.
"""

from __future__ import annotations

import contextlib
from typing import IO, Any


class LastingOutput:
    """A text file whose failures to write are swallowed; everything else is the file's own."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    # Any: whatever attribute of a text file is asked for.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

"""A program on a terminal of its own: what it shows, keys it is given, and the state it leaves."""

from __future__ import annotations

import os
import pty
import select
import sys
import termios
import time
from collections.abc import Callable, Mapping

CTRL_C, CTRL_D = b"\x03", b"\x04"
CURSOR_SHOWN, CURSOR_HIDDEN = b"\x1b[?25h", b"\x1b[?25l"


class Terminal:
    """`firstlight ARGUMENTS` as the leader of a pseudo-terminal: keys reach it as they reach a person's."""

    def __init__(self, *arguments: str, env: Mapping[str, str]) -> None:
        argv = [sys.executable, "-m", "firstlight.cli", *arguments]
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, {**env, "TERM": "xterm"})
        self.before = termios.tcgetattr(self._fd)
        self.shown = b""
        self._is_reaped = False

    def until(self, is_so: Callable[[bytes], bool], *, within_s: float = 120.0) -> None:
        """Read what it shows until `is_so` of all of it."""
        deadline_s = time.monotonic() + within_s
        while not is_so(self.shown):
            assert self._read(), f"it ended before: {self.shown.decode(errors='replace')[-600:]}"
            assert time.monotonic() < deadline_s, self.shown.decode(errors="replace")[-600:]

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def end(self, *, within_s: float = 60.0) -> int:
        """Read to its end; the exit code (negative: a signal)."""
        deadline_s = time.monotonic() + within_s
        while self._read():
            assert time.monotonic() < deadline_s, self.shown.decode(errors="replace")[-600:]
        _, status = os.waitpid(self.pid, 0)
        self._is_reaped = True
        return os.waitstatus_to_exitcode(status)

    def is_as_before(self) -> bool:
        """Echo, line mode and cursor are as the program found them."""
        is_shown = self.shown.rfind(CURSOR_SHOWN) >= self.shown.rfind(CURSOR_HIDDEN)
        return termios.tcgetattr(self._fd) == self.before and is_shown

    def close(self) -> None:
        """Hang up, as a closed window does, if it has not ended by itself."""
        os.close(self._fd)
        if not self._is_reaped:
            os.waitpid(self.pid, 0)

    def _read(self) -> bool:
        """False once nobody holds the other side."""
        if not select.select([self._fd], [], [], 0.1)[0]:
            return True
        try:
            more = os.read(self._fd, 65536)
        except OSError:
            return False
        self.shown += more
        return bool(more)

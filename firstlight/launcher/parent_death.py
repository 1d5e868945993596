"""Children that do not outlive their parent, also when the parent is killed with SIGKILL."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
# Found before any fork: the child of a threaded process must not load libraries between fork and exec.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """A `preexec_fn`: the kernel sends `number` when the spawning thread ends. None where it cannot."""
    if _PRCTL is None:
        return None
    prctl, parent = _PRCTL, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os._exit(1)

    return prepare

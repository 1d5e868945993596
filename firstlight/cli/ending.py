"""The end of a command whose process holds threads of Temporal's SDK.

They may be at the end of a call that has been answered. A Python that is taken down under them crashes, and a
command that has done its work seems to have failed.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_is_asked = False


def end_at_once() -> None:
    """This process is to end without Python's own way down."""
    global _is_asked
    _is_asked = True


def end(asked: SystemExit) -> None:
    """Ends the process where `end_at_once` was called, with all it printed written; else returns."""
    if not _is_asked:
        return
    # The reader may have gone.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if asked.code is None:
        os._exit(0)
    os._exit(asked.code if isinstance(asked.code, int) else 1)

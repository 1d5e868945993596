"""Points at which a process can be made to stand still, so that a test may kill it, or another, right there.

Off unless FIRSTLIGHT_FAULT_SOCKET names a Unix socket: the one variable that is no setting of an operator.
A process that reaches a point then connects, sends one line {"pid", "point", "of"}, and goes on when it is
answered or the connection ends; where nobody listens it goes on at once. `tests.chaos.fault_driver` listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os

VARIABLE = "FIRSTLIGHT_FAULT_SOCKET"
_SOCKET = os.environ.get(VARIABLE)
IS_ON = _SOCKET is not None


async def reach(point: str, *, of: str = "") -> None:
    """Stand here for as long as a test wants; `of` tells whose point it is (a workflow, a request)."""
    if _SOCKET is None:
        return
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_unix_connection(_SOCKET)
        writer.write(json.dumps({"pid": os.getpid(), "point": point, "of": of}).encode() + b"\n")
        await reader.readline()
        writer.close()

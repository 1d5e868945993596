"""Waiting for the end of a process by its id, without polling where the kernel can tell."""

from __future__ import annotations

import asyncio
import os
import sys

_POLL_S = 0.2


async def wait_for_exit(pid: int) -> None:
    """Return when `pid`, a child of ours or not, has ended."""
    if not sys.platform.startswith("linux"):
        # There is no pidfd to wait on here.
        while _exists(pid):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

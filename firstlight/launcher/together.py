"""Several works at the same time, of which none is left running when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

Result = TypeVar("Result")


async def together(*works: Coroutine[None, None, Result]) -> list[Result]:
    """Results in order. The first failure ends the others, waits for their end, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        # Not gather: cancelled from outside it would go on before all have ended, and they would be cancelled
        # once more in the middle of clearing up.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure
    return [task.result() for task in tasks]

"""Waiting for a database that is away: bounded, because somebody waits behind every activity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from firstlight.domain.errors import DatabaseUnavailable

Answer = TypeVar("Answer")
DATABASE_PATIENCE_S = 60.0


async def until_database_answers(
    work: Callable[[], Awaitable[Answer]], *, patience_s: float = DATABASE_PATIENCE_S
) -> Answer:
    """Repeat an idempotent transaction while Postgres is away. Raises: DatabaseUnavailable in the end."""
    deadline_s = time.monotonic() + patience_s
    pause_s = 0.1
    while True:
        try:
            return await work()
        except DatabaseUnavailable:
            if time.monotonic() + pause_s > deadline_s:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 2.0)

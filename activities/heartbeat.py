"""Heartbeats with progress: they show that the attempt lives, and tell the next one how far it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any

from temporalio import activity

# A sixth of the heartbeat time-out: a busy machine may miss several.
EVERY_S = 0.5
# Of this attempt, once it no longer beats.
_told: ContextVar[Progress | None] = ContextVar("told", default=None)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a heartbeat says. The measured seconds survive the attempt that measured them."""

    phase: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    queue_s: float = 0.0
    load_s: float = 0.0
    tier: str = ""
    moving_at_unix_s: float = 0.0


class Heart:
    """Beats while the activity is in `beating()`; `note` changes what the next beat says."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    # Any: any field of Progress.
    def note(self, **changes: Any) -> None:
        is_new_phase = changes.get("phase", self.progress.phase) != self.progress.phase
        self.progress = replace(self.progress, **changes)
        if is_new_phase:
            # What the finished phase measured must survive a death in the next one.
            self.beat()

    def beat(self) -> None:
        activity.heartbeat(asdict(self.progress))

    async def beat_for_ever(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(EVERY_S)


@asynccontextmanager
async def beating(phase: str) -> AsyncIterator[Heart]:
    heart = Heart(Progress(phase=phase))
    task = asyncio.create_task(heart.beat_for_ever())
    try:
        yield heart
    finally:
        _told.set(heart.progress)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def told_last() -> dict[str, object] | None:
    """What the last heartbeat of this attempt said, or would have; None for one that never beat."""
    progress = _told.get()
    return asdict(progress) if progress is not None else None


def last_progress() -> Progress | None:
    """What the attempt before this one had reached; None for the first, or one that never beat."""
    details = activity.info().heartbeat_details
    if not details or not isinstance(details[0], Mapping):
        return None
    known = {name: value for name, value in details[0].items() if name in Progress.__slots__}
    return Progress(**known)

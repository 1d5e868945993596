"""Where one start stands while it is brought up: the phase it is in, and what those before it took.

The same phases as in its receipt, seen from within: `activities.bringing_up` has the figures in the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from activities.arriving import LANDED, Arrived
from activities.heartbeat import Heart
from firstlight.contracts.progress import StartProgress
from firstlight.contracts.starts import BringUpInput


@dataclass(frozen=True, slots=True)
class _Phase:
    name: str
    since_unix_s: float
    done: Mapping[str, float]
    moves_bytes: bool = False


class Standing:
    """Marks are set as the start goes on; times are this host's, in seconds since the Unix epoch."""

    def __init__(self, request: BringUpInput, heart: Heart) -> None:
        self._request = request
        self._heart = heart
        self._began = time.time()
        self._arrived: Arrived | None = None
        self._arrived_at = 0.0
        self._waits_since: float | None = None
        self._waited_s = 0.0
        self._attach_began: float | None = None
        self._attach_ended: float | None = None

    def waits_for_room(self) -> None:
        """No room for the bytes until others have given way."""
        self._waits_since = time.time()

    def has_room(self) -> None:
        now = time.time()
        self._waited_s = now - (self._waits_since or now)
        self._waits_since, self._began = None, now

    def arrived(self, arrived: Arrived) -> None:
        self._arrived, self._arrived_at = arrived, time.time()

    def attaches(self) -> None:
        self._attach_began = time.time()

    def attached(self) -> None:
        self._attach_ended = time.time()

    def now(self) -> StartProgress:
        phase = self._coming() if self._arrived is None else self._there(self._arrived)
        came, plan = self._heart.progress, self._request.plan
        return StartProgress(
            instance_id=plan.instance_id,
            epoch=plan.epoch,
            phase=phase.name,
            phase_s=max(0.0, time.time() - phase.since_unix_s),
            bytes_done=came.bytes_done if phase.moves_bytes else 0,
            bytes_total=came.bytes_total if phase.moves_bytes else 0,
            done={name: seconds for name, seconds in phase.done.items() if seconds > 0},
        )

    def _coming(self) -> _Phase:
        """Bytes are on their way, or wait to be."""
        came, request = self._heart.progress, self._request
        fetched_s = request.download_s
        if self._waits_since is not None:
            return _Phase("free", self._waits_since, {"download": fetched_s})
        if came.tier in LANDED or (request.fetch and came.tier == ""):
            # A hint may have set it going before anybody asked.
            since = min(self._began, came.moving_at_unix_s or self._began)
            return _Phase("download", since, {"queue": came.queue_s}, moves_bytes=True)
        if came.moving_at_unix_s <= 0:
            return _Phase("queue", self._began, {"download": fetched_s, "free": self._waited_s})
        if request.fetch:
            fetched_s += max(0.0, came.moving_at_unix_s - self._began - came.queue_s)
        done = {"queue": came.queue_s, "download": fetched_s, "free": self._waited_s}
        return _Phase("load", came.moving_at_unix_s, done, moves_bytes=True)

    def _there(self, arrived: Arrived) -> _Phase:
        """All bytes are in DRAM; what is larger than that is streamed as the engine attaches."""
        began, ended = self._attach_began, self._attach_ended
        awaits_gpus = self._request.plan.awaits_gpus
        done = {
            "queue": arrived.queue_s,
            "download": self._request.download_s + arrived.download_s,
            "load": arrived.load_s,
            "free": arrived.waited_s,
        }
        if began is None:
            return _Phase("free" if awaits_gpus else "attach", self._arrived_at, done)
        if awaits_gpus:
            done["free"] += max(0.0, began - self._arrived_at)
        own = "load" if arrived.is_streamed else "attach"
        since = max(began, self._arrived_at)
        if ended is None:
            return _Phase(own, since, done)
        # Behind the bytes' way an attach takes no time of its own.
        done[own] = max(0.0, ended - since)
        return _Phase("control", max(ended, self._arrived_at), done)

"""One model's lane: its running instances, its starts under way, and the requests that wait, first come
first served.

Everything happens on one event loop between awaits, so no lock is needed; the hazards are at the awaits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from firstlight.domain.errors import FirstlightError, QueueFull, StartTimeout


@dataclass(frozen=True, slots=True)
class Route:
    """Where a ready instance answers, and the epoch every call to it carries."""

    instance_id: str
    model: str
    host_id: str
    endpoint: str
    epoch: int
    max_concurrency: int


@dataclass(slots=True)
class _Ready:
    route: Route
    # Whether its first token since it started has been seen, or cannot be (it ran before this process did).
    is_proven: bool
    running: int = 0
    ready_s: float = field(default_factory=time.monotonic)
    # Since when it is doubted: it failed a request, and the database still calls it ready.
    suspected_s: float | None = None


@dataclass(slots=True, eq=False)
class _Waiter:
    answer: asyncio.Future[Slot]
    # False: waits only until some instance is ready, and takes no slot of it.
    needs_slot: bool
    deadline_s: float
    request_id: str
    avoid: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A place at an instance; give it back exactly once. `holds` is False for one that takes no place."""

    route: Route
    holds: bool
    waited_s: float


@dataclass(slots=True)
class Lane:
    """`on_demand` is called when a request begins to wait; times are `time.monotonic()` seconds."""

    model: str
    max_queue: int
    on_demand: Callable[[Lane], None]
    # Instances that are starting, with the places each will have.
    starting: dict[str, int] = field(default_factory=dict)
    # Instances that take no new request but still hold their GPUs.
    draining: set[str] = field(default_factory=set)
    # Ready instances, the longest serving first, that requests are gathered on; None: all of them.
    gathered_on: int | None = None
    _ready: dict[str, _Ready] = field(default_factory=dict)
    _waiters: deque[_Waiter] = field(default_factory=deque)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def running(self) -> int:
        return sum(entry.running for entry in self._ready.values())

    @property
    def ready_capacity(self) -> int:
        return sum(entry.route.max_concurrency for entry in self._trusted())

    @property
    def places_each(self) -> int:
        """Places of one instance; of the smallest, should they differ."""
        ready = [entry.route.max_concurrency for entry in self._trusted()]
        return min((*ready, *self.starting.values()), default=1)

    @property
    def suspected_s(self) -> float | None:
        """Since when the longest doubted instance is doubted; None without any."""
        return min(
            (entry.suspected_s for entry in self._ready.values() if entry.suspected_s is not None),
            default=None,
        )

    @property
    def routes(self) -> tuple[Route, ...]:
        """Ready instances that requests are sent to."""
        return tuple(entry.route for entry in self._trusted())

    def latest_deadline_s(self) -> float:
        """When the last of the waiting requests gives up; now, if none waits."""
        return max((waiter.deadline_s for waiter in self._waiters), default=time.monotonic())

    @property
    def first_request_id(self) -> str:
        """Of the request that waits longest; a decision names it."""
        return self._waiters[0].request_id if self._waiters else ""

    async def take(
        self, *, deadline_s: float, request_id: str, needs_slot: bool = True, avoid: str | None = None
    ) -> Slot:
        """A place at the least loaded instance, at once or after waiting in line.

        Instance `avoid` (it has just refused this request) only if no other has room.

        Raises: QueueFull; StartTimeout at the deadline; whatever `fail_waiting` was given.
        """
        if not self._waiters and (slot := self._place(needs_slot, avoid)) is not None:
            return slot
        self.check_line()
        return await self._wait(deadline_s, request_id, needs_slot, avoid)

    def check_line(self) -> None:
        """Raises: QueueFull, where one more could not even wait."""
        if len(self._waiters) >= self.max_queue:
            raise QueueFull(
                f"{len(self._waiters)} requests wait for model {self.model!r} already",
                model=self.model,
                retry_after_s=5.0,
            )

    def follow(self, route: Route) -> Slot:
        """A place where a request has moved to, however full: its cache waits for it there."""
        entry = self._ready.get(route.instance_id)
        if entry is None or entry.route.epoch != route.epoch:
            # The notice that opens it is still on its way, or it is closed to new requests.
            return Slot(route, False, 0.0)
        entry.running += 1
        return Slot(entry.route, True, 0.0)

    async def _wait(self, deadline_s: float, request_id: str, needs_slot: bool, avoid: str | None) -> Slot:
        began_s = time.monotonic()
        waiter = _Waiter(
            asyncio.get_running_loop().create_future(), needs_slot, deadline_s, request_id, avoid
        )
        self._waiters.append(waiter)
        self.on_demand(self)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - began_s)):
                slot = await waiter.answer
        except BaseException as interruption:
            # The place may have been given in the very moment the wait was cut off: it must not leak.
            answer = waiter.answer
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.give_back(answer.result())
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(interruption, TimeoutError):
                raise self._too_late(time.monotonic() - began_s) from None
            raise
        return Slot(slot.route, slot.holds, time.monotonic() - began_s)

    def give_back(self, slot: Slot) -> None:
        """Free the place and hand it to the first in line."""
        entry = self._ready.get(slot.route.instance_id)
        if slot.holds and entry is not None and entry.route.epoch == slot.route.epoch:
            entry.running = max(0, entry.running - 1)
        self._serve_waiting()

    def open(self, route: Route) -> None:
        """An instance is ready (again): serve who waits. Repeats change nothing."""
        was_starting = self.starting.pop(route.instance_id, None) is not None
        entry = self._ready.get(route.instance_id)
        if entry is None or entry.route.epoch < route.epoch:
            self._ready[route.instance_id] = _Ready(route, is_proven=not was_starting)
        else:
            entry.route, entry.suspected_s = route, None
        self._serve_waiting()

    def suspect(self, route: Route) -> bool:
        """Send nothing there until it proves well or is gone. False: it is no longer known anyway."""
        entry = self._ready.get(route.instance_id)
        if entry is None or entry.route.epoch != route.epoch:
            return False
        entry.suspected_s = entry.suspected_s or time.monotonic()
        return True

    def trust(self, route: Route) -> None:
        """A suspected instance answered well: send requests there again."""
        entry = self._ready.get(route.instance_id)
        if entry is not None and entry.route.epoch == route.epoch:
            entry.suspected_s = None
            self._serve_waiting()

    def close(self, instance_id: str) -> None:
        """The instance takes no more requests; those it is running end by themselves."""
        self._ready.pop(instance_id, None)
        self.starting.pop(instance_id, None)

    def prove(self, route: Route, *, arrived_s: float = -math.inf) -> bool:
        """True once: for the first token after a start, if its request came before the instance was ready."""
        entry = self._ready.get(route.instance_id)
        if entry is None or entry.is_proven:
            return False
        entry.is_proven = True
        return arrived_s < entry.ready_s

    def fail_waiting(self, error: FirstlightError) -> None:
        """End the wait of all who wait now with `error`."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.answer.done():
                waiter.answer.set_exception(error)

    def _serve_waiting(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.answer.done():
                self._waiters.popleft()
                continue
            slot = self._place(waiter.needs_slot, waiter.avoid)
            if slot is None:
                return
            self._waiters.popleft()
            waiter.answer.set_result(slot)

    def _trusted(self) -> list[_Ready]:
        return [entry for entry in self._ready.values() if entry.suspected_s is None]

    def _place(self, needs_slot: bool, avoid: str | None) -> Slot | None:
        entries = [
            entry
            for entry in self._trusted()
            if not needs_slot or entry.running < entry.route.max_concurrency
        ]
        if not entries:
            return None
        spared = self._spared()
        best = min(entries, key=lambda entry: _preference(entry, avoid, spared))
        best.running += needs_slot
        return Slot(best.route, needs_slot, 0.0)

    def _spared(self) -> frozenset[str]:
        """Instances that get a request only where all others are full: so they fall idle, and end."""
        if self.gathered_on is None or self.gathered_on >= len(self._ready):
            return frozenset()
        # The same ones in every replica of the API: the newest.
        by_age = sorted(self._ready.values(), key=lambda entry: entry.route.epoch)
        return frozenset(entry.route.instance_id for entry in by_age[max(1, self.gathered_on) :])

    def _too_late(self, waited_s: float) -> StartTimeout:
        what = "is starting" if self.starting else "has no free place"
        return StartTimeout(
            f"model {self.model!r} {what}; gave up after {waited_s:.1f} s",
            model=self.model,
            retry_after_s=5.0,
        )


def _preference(entry: _Ready, avoid: str | None, spared: frozenset[str]) -> tuple[bool, bool, float, int]:
    name = entry.route.instance_id
    return (name == avoid, name in spared, entry.running / entry.route.max_concurrency, entry.running)

"""Engines that stand ready, imports done and arena mapped, so that an attach only binds.

Each slot holds one spare: it forks it, waits for it, has the skeletons of this host's checkpoints built in
it, and forks the next when it was taken or has died. Told that spares are not worth keeping, a slot lets its
own go, and forks one when somebody waits: the zygote, which has the imports, stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from firstlight.domain.errors import EngineGone, FirstlightError
from gpu_worker.engine.client import EngineHandle
from gpu_worker.engine.control import EngineConfig, PrepareCommand
from gpu_worker.host.backoff import Backoff
from gpu_worker.host.kept_for import KeptFor
from gpu_worker.host.zygote import KeptZygote

log = logging.getLogger("host.spares")

# A replacement waits (not for ever) for the attach that took the last one: the two would fight for cores.
SETTLE_S = 10.0
# And then for the first tokens of what was attached, unless somebody waits for a spare.
REST_S = 1.0


@dataclass(eq=False, slots=True)
class Spare:
    """An engine on its way to ready, or ready, or taken. `settled`: whoever took it has done its work."""

    handle: EngineHandle
    device: str
    is_ready: bool = False
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Spares:
    """Keeps `per_device` spares for each device."""

    def __init__(
        self,
        *,
        zygote: KeptZygote,
        devices: Iterable[str],
        per_device: int,
        engine_config: Callable[[str], EngineConfig],
        store_ready: asyncio.Event,
    ) -> None:
        self._zygote = zygote
        self._slots = [device for device in devices for _ in range(per_device)]
        self._engine_config = engine_config
        self._store_ready = store_ready
        self._spares: list[Spare] = []
        self._changed = asyncio.Condition()
        # The device of each that waits for a spare.
        self._waiting: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._skeletons: dict[str, PrepareCommand] = {}
        # Those that every ready spare has been asked to build.
        self._built: set[str] = set()
        self._kept_for = KeptFor()

    @property
    def all(self) -> tuple[Spare, ...]:
        """Those nobody has taken."""
        return tuple(self._spares)

    @property
    def are_let_go(self) -> bool:
        """Whether none stands ready because none is worth keeping."""
        return not self._kept_for.has_spares(time.monotonic())

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(device)) for device in self._slots]

    async def stop(self) -> None:
        """Make no more; the living ones end with the zygote's close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def take(self, device: str) -> Spare:
        """The next ready engine of `device`, waiting for it; the caller sets `settled` when it is bound."""
        async with self._changed:
            self._waiting.append(device)
            self._changed.notify_all()
            try:
                await self._changed.wait_for(lambda: self._ready(device) is not None)
            finally:
                self._waiting.remove(device)
            spare = self._ready(device)
            assert spare is not None, "wait_for holds the lock from its last look until here"
            self._spares.remove(spare)
            spare.taken.set()
            return spare

    def expect(self, commands: Mapping[str, PrepareCommand]) -> None:
        """Have skeletons of these checkpoints built in every spare, now and to come."""
        self._skeletons = dict(commands)
        self._build_fresh()

    def prepare(self, command: PrepareCommand) -> Sequence[Spare]:
        """A hint: build this one now, in every spare. Returns those, none when there is none."""
        ready = [spare for spare in self._spares if spare.is_ready]
        self._skeletons[command.checkpoint_id] = command
        self._built.add(command.checkpoint_id)
        for spare in ready:
            self._keep_task(self._prepare(spare, [command]))
        were_let_go = self.are_let_go
        self._kept_for = self._kept_for.but_wanted(command.checkpoint_id)
        if were_let_go:
            # A spare comes back while the bytes of this start still move.
            self._keep_task(self._tell_change())
        return ready

    async def keep_for(self, kept_for: KeptFor) -> None:
        """How long spares and skeletons are worth keeping, instead of what was said before."""
        self._kept_for = kept_for
        self._build_fresh()
        await self._tell_change()

    async def _tell_change(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _wanted_skeletons(self) -> dict[str, PrepareCommand]:
        now_s = time.monotonic()
        return {
            name: command
            for name, command in self._skeletons.items()
            if self._kept_for.has_skeleton(name, now_s)
        }

    def _build_fresh(self) -> None:
        """Build, in ready spares, what has come to be wanted since the last look."""
        wanted = self._wanted_skeletons()
        fresh = [command for name, command in wanted.items() if name not in self._built]
        self._built = set(wanted)
        for spare in self._spares:
            if spare.is_ready and fresh:
                self._keep_task(self._prepare(spare, fresh))

    def _ready(self, device: str) -> Spare | None:
        for spare in self._spares:
            if spare.is_ready and spare.device == device and spare.handle.is_alive:
                return spare
        return None

    # Any coroutine of no value: tracked, so that the loop does not drop it and `stop` ends it.
    def _keep_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _keep(self, device: str) -> None:
        backoff = Backoff()
        while True:
            await self._until(lambda: self._is_wanted(device))
            began = time.monotonic()
            try:
                await self._one(device)
                backoff = Backoff()
            except FirstlightError as failure:
                delay_s = backoff.after(lived_s=time.monotonic() - began)
                log.warning("spare ended device=%s retry_in_s=%.1f: %s", device, delay_s, failure.message)
                await asyncio.sleep(delay_s)

    async def _one(self, device: str) -> None:
        """One spare's life in its slot, until it is taken, let go or dead. Raises: EngineGone."""
        # Without its store a spare ends at once: it has no arena to map.
        await self._store_ready.wait()
        handle = await self._zygote.spawn(self._engine_config(device))
        spare = Spare(handle, device)
        self._spares.append(spare)
        try:
            endpoint = await handle.wait_spare()
            async with self._changed:
                spare.is_ready = True
                self._changed.notify_all()
            log.info("spare ready pid=%d device=%s endpoint=%s", handle.pid, device, endpoint)
            await self._prepare(spare, list(self._wanted_skeletons().values()))
            await self._until_gone(spare)
        finally:
            if spare in self._spares:
                self._spares.remove(spare)
                handle.kill()

    async def _until_gone(self, spare: Spare) -> None:
        """Until it is taken and the taker is done (or others are waiting), may go, or has died."""
        exited = asyncio.ensure_future(spare.handle.wait_exit())
        taken = asyncio.ensure_future(spare.taken.wait())
        unwanted = asyncio.ensure_future(self._until(lambda: not self._is_wanted(spare.device)))
        try:
            await asyncio.wait([exited, taken, unwanted], return_when=asyncio.FIRST_COMPLETED)
            # It may have been taken since it was found unwanted. From this look until `_one` has removed it
            # nothing is awaited, so that nobody takes what is being let go.
            if spare.taken.is_set():
                await self._settled_or_wanted(spare)
            elif exited.done():
                raise EngineGone(f"spare {spare.handle.pid} ended with status {exited.result()}")
            else:
                log.info("spare let go pid=%d device=%s", spare.handle.pid, spare.device)
        finally:
            exited.cancel()
            taken.cancel()
            unwanted.cancel()

    async def _settled_or_wanted(self, spare: Spare) -> None:
        settled = asyncio.ensure_future(spare.settled.wait())
        wanted = asyncio.ensure_future(self._wait_wanted())
        try:
            await asyncio.wait([settled, wanted], timeout=SETTLE_S, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([wanted], timeout=REST_S)
        finally:
            settled.cancel()
            wanted.cancel()

    async def _wait_wanted(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting))

    def _is_wanted(self, device: str) -> bool:
        return device in self._waiting or not self.are_let_go

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Until this holds: looked at whenever something changes or a time that was told runs out."""
        async with self._changed:
            while not holds():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._kept_for.spares_change_in_s(time.monotonic())):
                        await self._changed.wait()

    async def _prepare(self, spare: Spare, commands: list[PrepareCommand]) -> None:
        for command in commands:
            if spare.taken.is_set():
                return
            try:
                await spare.handle.prepare(command)
            except FirstlightError as failure:
                log.warning("skeleton of %s not built: %s", command.checkpoint_id, failure.message)

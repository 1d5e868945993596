"""The bound engines of a host: who holds which GPU under which epoch, from attach to exit.

Laws: a GPU has at most one engine that is not ending; a lower epoch than one seen is refused, a higher one
takes the GPU from whoever holds it; a repeat of an attach gets the first outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from enum import StrEnum

from firstlight.domain.errors import (
    Cancelled,
    Conflict,
    EngineBusy,
    EngineGone,
    FirstlightError,
    InvalidInput,
    StaleEpoch,
)
from gpu_worker.engine.client import EngineHandle
from gpu_worker.engine.control import AttachCommand, Attached
from gpu_worker.host.devices import device_of
from gpu_worker.host.fences import Fences
from gpu_worker.host.spares import Spare, Spares

log = logging.getLogger("host.engines")

# A spare can die between being taken and being bound; another one is as good.
ATTEMPTS = 3
SPARE_WAIT_S = 90.0


class EngineState(StrEnum):
    ATTACHING = "attaching"
    READY = "ready"
    DRAINING = "draining"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class AttachOutcome:
    """What the engine answered, and how long it took to have one."""

    attached: Attached
    wait_spare_s: float
    total_s: float
    ended_s: float  # monotonic
    was_ahead: bool


class BoundEngine:
    """One instance on this host."""

    def __init__(self, command: AttachCommand, gpu_indices: tuple[int, ...], *, is_ahead: bool) -> None:
        self.command = command
        self.gpu_indices = gpu_indices
        # Asked for by the API before the workflow came to it.
        self.is_ahead = is_ahead
        self.state = EngineState.ATTACHING
        self.handle: EngineHandle | None = None
        self.attaching: asyncio.Task[AttachOutcome] | None = None
        self.stopping: asyncio.Task[None] | None = None


class Engines:
    """Belongs to one event loop. `device_kind` is cpu or cuda."""

    def __init__(self, *, spares: Spares, fences: Fences, device_kind: str, gpu_count: int) -> None:
        self._spares = spares
        self._fences = fences
        self._device_kind = device_kind
        self._gpu_count = gpu_count
        self._bound: dict[str, BoundEngine] = {}
        self._exited: list[BoundEngine] = []
        self._watchers: set[asyncio.Task[None]] = set()

    @property
    def bound(self) -> tuple[BoundEngine, ...]:
        return tuple(self._bound.values())

    def take_exited(self) -> tuple[BoundEngine, ...]:
        """Engines that ended unasked since the last call: told once."""
        exited, self._exited = tuple(self._exited), []
        return exited

    async def attach(
        self, command: AttachCommand, gpu_indices: tuple[int, ...], *, is_ahead: bool = False
    ) -> AttachOutcome:
        """Bind a spare. A caller that gives up does not stop it: its repeat joins.

        Raises: InvalidInput, StaleEpoch, Conflict, UnknownCheckpoint, AttachFailed, EngineGone, Cancelled.
        """
        self._check(gpu_indices)
        known = self._bound.get(command.instance_id)
        if known is None or known.command.epoch < command.epoch:
            known = self._begin(command, gpu_indices, is_ahead=is_ahead)
        elif known.command.epoch > command.epoch:
            raise StaleEpoch(
                f"instance {command.instance_id} runs under epoch {known.command.epoch}, not {command.epoch}",
                instance_id=command.instance_id,
            )
        elif known.command != command or known.gpu_indices != gpu_indices:
            raise Conflict(f"instance {command.instance_id} was attached with other arguments")
        assert known.attaching is not None
        try:
            return await asyncio.shield(known.attaching)
        except asyncio.CancelledError:
            if known.attaching.cancelled():
                raise Cancelled(f"instance {command.instance_id} was stopped while it attached") from None
            raise

    async def stop(self, *, instance_id: str, epoch: int, drain_timeout_s: float, reason: str) -> bool:
        """End an instance; False when it is not here. A repeat joins. Raises: StaleEpoch."""
        engine = self._bound.get(instance_id)
        if engine is None:
            return False
        if epoch < engine.command.epoch:
            raise StaleEpoch(
                f"instance {instance_id} runs under epoch {engine.command.epoch}, not {epoch}",
                instance_id=instance_id,
            )
        await asyncio.shield(self._stopping(engine, drain_timeout_s, reason))
        return True

    async def close(self, *, drain_timeout_s: float) -> None:
        """Drain and end every engine."""
        stops = [self._stopping(engine, drain_timeout_s, "host stops") for engine in self.bound]
        await asyncio.gather(*stops, return_exceptions=True)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)

    def _check(self, gpu_indices: tuple[int, ...]) -> None:
        if not gpu_indices or len(set(gpu_indices)) != len(gpu_indices):
            raise InvalidInput("an attach names at least one GPU, and each once")
        if wrong := [index for index in gpu_indices if not 0 <= index < self._gpu_count]:
            raise InvalidInput(f"this host has GPUs 0 to {self._gpu_count - 1}, not {wrong}")

    def _begin(self, command: AttachCommand, gpu_indices: tuple[int, ...], *, is_ahead: bool) -> BoundEngine:
        self._fences.check(gpu_indices, command.epoch)
        holders = [one for one in self.bound if set(one.gpu_indices) & set(gpu_indices)]
        for holder in holders:
            if holder.command.epoch == command.epoch:
                raise Conflict(f"epoch {command.epoch} belongs to instance {holder.command.instance_id}")
        self._fences.raise_to(gpu_indices, command.epoch)
        earlier = self._bound.get(command.instance_id)
        replaced = {id(one): one for one in [*holders, *([earlier] if earlier else [])]}
        engine = BoundEngine(command, gpu_indices, is_ahead=is_ahead)
        loop = asyncio.get_running_loop()
        engine.attaching = loop.create_task(self._attach(engine, list(replaced.values())))
        engine.attaching.add_done_callback(lambda task: self._settle(engine, task))
        self._bound[command.instance_id] = engine
        return engine

    async def _attach(self, engine: BoundEngine, replaced: list[BoundEngine]) -> AttachOutcome:
        began = time.monotonic()
        for old in replaced:
            # A higher epoch owns the GPU now: the old owner's reservation is gone, so nothing is drained.
            await asyncio.shield(self._stopping(old, 0.0, f"fenced off by epoch {engine.command.epoch}"))
        wait_spare_s = 0.0
        for attempt in range(1, ATTEMPTS + 1):
            asked = time.monotonic()
            spare = await self._spare(engine)
            wait_spare_s += time.monotonic() - asked
            engine.handle = spare.handle
            try:
                attached = await spare.handle.attach(engine.command)
            except EngineGone:
                if attempt == ATTEMPTS:
                    raise
                log.warning("spare pid=%d died before it was bound", spare.handle.pid)
                continue
            finally:
                spare.settled.set()
            ended = time.monotonic()
            return AttachOutcome(attached, wait_spare_s, ended - began, ended, engine.is_ahead)
        raise AssertionError("the loop returns or raises")

    async def _spare(self, engine: BoundEngine) -> Spare:
        try:
            async with asyncio.timeout(SPARE_WAIT_S):
                return await self._spares.take(device_of(self._device_kind, engine.gpu_indices[0]))
        except TimeoutError as failure:
            # Bound only now, it would belong to a start that everyone else has given up.
            raise EngineBusy(f"no spare engine within {SPARE_WAIT_S:.0f} s") from failure

    def _settle(self, engine: BoundEngine, task: asyncio.Task[AttachOutcome]) -> None:
        """An attach ended: watch the engine, or forget the attempt so that a repeat can try again."""
        name = engine.command.instance_id
        failure = None if task.cancelled() else task.exception()
        if not task.cancelled() and failure is None:
            engine.state = EngineState.READY
            outcome = task.result()
            log.info(
                "attached instance=%s checkpoint=%s endpoint=%s wait_spare_s=%.3f total_s=%.3f",
                name,
                engine.command.checkpoint_id,
                outcome.attached.endpoint,
                outcome.wait_spare_s,
                outcome.total_s,
            )
            self._watch(engine)
            return
        log.warning("attach failed instance=%s: %s", name, failure or "cancelled")
        if engine.handle is not None:
            engine.handle.kill()
        self._forget(engine)

    def _watch(self, engine: BoundEngine) -> None:
        watcher = asyncio.get_running_loop().create_task(self._until_exit(engine))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _until_exit(self, engine: BoundEngine) -> None:
        assert engine.handle is not None
        status = await engine.handle.wait_exit()
        if engine.stopping is None:
            log.error(
                "engine died instance=%s pid=%d status=%s",
                engine.command.instance_id,
                engine.handle.pid,
                status,
            )
            engine.state = EngineState.EXITED
            self._exited.append(engine)
        self._forget(engine)

    def _stopping(self, engine: BoundEngine, drain_timeout_s: float, reason: str) -> asyncio.Task[None]:
        if engine.stopping is None:
            loop = asyncio.get_running_loop()
            engine.stopping = loop.create_task(self._stop(engine, drain_timeout_s, reason))
        return engine.stopping

    async def _stop(self, engine: BoundEngine, drain_timeout_s: float, reason: str) -> None:
        log.info("stopping instance=%s reason=%s", engine.command.instance_id, reason)
        if engine.state is EngineState.ATTACHING and engine.attaching is not None:
            engine.attaching.cancel()
            await asyncio.gather(engine.attaching, return_exceptions=True)
        else:
            engine.state = EngineState.DRAINING
        if engine.handle is not None:
            await _end(engine.handle, drain_timeout_s if engine.state is EngineState.DRAINING else 0.0)
        self._forget(engine)

    def _forget(self, engine: BoundEngine) -> None:
        # A successor of the same name may stand in its place already.
        if self._bound.get(engine.command.instance_id) is engine:
            del self._bound[engine.command.instance_id]


async def _end(handle: EngineHandle, drain_timeout_s: float) -> None:
    try:
        await handle.stop(drain_timeout_s=drain_timeout_s)
    except FirstlightError as failure:
        log.warning("engine pid=%d did not stop by itself: %s", handle.pid, failure.message)
        handle.kill()
        await handle.wait_exit()

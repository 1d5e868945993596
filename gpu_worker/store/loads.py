"""Bring checkpoints from SSD into the DRAM pool, one at a time in the order asked; repeats join.

What comes from elsewhere (`land`) is joined in the same way, but does not wait its turn.

Who may stop a load: nobody who merely leaves, for a hint's load serves whoever comes next. But one that
nobody has waited for in UNWANTED_S, neither a caller nor a reader that follows it, yields the device to one
that is waited for; and `stop_unwanted` ends it at once, for who removes its checkpoint. It stops at a chunk.

What is brought ahead of need (`order(…, ahead=True)`) costs nobody a wait: it is held at a chunk for as long
as any other load or stream wants the device, and given up where its room in the pool is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from firstlight.domain.errors import (
    Cancelled,
    CheckpointError,
    Conflict,
    FirstlightError,
    PoolFull,
    UnknownCheckpoint,
)
from gpu_worker.store.extents import Extent
from gpu_worker.store.landing import Arrival, Landing
from gpu_worker.store.load_state import LoadState, resident
from gpu_worker.store.memory import Memory, Transfer
from gpu_worker.store.pool import Pool
from gpu_worker.store.shared_work import SharedWork
from gpu_worker.store.ssd_cache import CachedCheckpoint, SsdCache
from gpu_worker.store.streams import Streams
from gpu_worker.store.turns import Turn, Turns
from native_loader import ProgressBoard

__all__ = ["LoadState", "Loads"]

log = logging.getLogger("store.load")

# A bar that moves four times a second looks alive, and costs a load no measurable CPU time.
PROGRESS_INTERVAL_S = 0.25
UNWANTED_S = 10.0


class _Load:
    """One load under way: its progress, and what readers who follow it must know."""

    def __init__(
        self,
        state: LoadState,
        arrival: asyncio.Future[Arrival],
        turn: Turn | None = None,
    ) -> None:
        # What lands has none: it does not read the device.
        self.turn = turn
        self.is_held = False
        self.work = SharedWork(state)
        self.arrival = arrival
        self.followers = 0
        self.wanted_s = time.monotonic()
        # Looked at, so that a failure nobody waits for is not reported as lost.
        arrival.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def is_landing(self) -> bool:
        return self.turn is None

    @property
    def is_ahead(self) -> bool:
        return self.turn is not None and self.turn.is_ahead

    def promote(self) -> None:
        """Somebody waits for it now."""
        if self.turn is not None:
            self.turn.promote()

    def tell(self, *, bytes_done: int, began: float) -> None:
        elapsed_s = time.monotonic() - began
        self.work.tell(replace(self.work.progress, bytes_done=bytes_done, elapsed_s=elapsed_s))

    def done(self, *, began: float) -> None:
        self.tell(bytes_done=self.work.progress.bytes_total, began=began)
        self.work.tell(replace(self.work.progress, is_done=True))

    def fail(self, failure: BaseException) -> None:
        if not self.arrival.done():
            self.arrival.set_exception(failure)


class Loads:
    """The one loader of this host. One transfer at a time: two would only share the device's bandwidth."""

    def __init__(self, *, cache: SsdCache, pool: Pool, memory: Memory, ssd_read_bytes_per_s: float) -> None:
        self._cache = cache
        self._pool = pool
        self._memory = memory
        self._bandwidth = ssd_read_bytes_per_s
        self._running: dict[str, _Load] = {}
        self.on_idle: Callable[[], None] = lambda: None
        self._begun = asyncio.Event()
        self._queued: list[_Load] = []
        # How what is resident came there.
        self._brought: dict[str, LoadState] = {}
        # Where the small files are of what landed, for readers who come before it is on SSD.
        self._landed: dict[str, Arrival] = {}
        self._turns = Turns()
        self.streams = Streams(
            cache=cache, pool=pool, memory=memory, turn=self._turns.turn, condemn=self._quarantine
        )

    @property
    def queued_bytes(self) -> int:
        """Promised to loads that have not finished, less those that would give way."""
        states = [load.work.progress for load in self._running.values() if not load.is_ahead]
        return sum(state.bytes_total - state.bytes_done for state in states)

    @property
    def is_idle(self) -> bool:
        return not self._running

    def is_running(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._running

    def find(self, checkpoint_id: str) -> LoadState | None:
        load = self._running.get(checkpoint_id)
        return load.work.progress if load is not None else None

    def resident(self, checkpoint_id: str, *, since_unix_s: float = 0.0) -> LoadState | None:
        """The finished state of what is in DRAM already, or None.

        It is that of the load which brought it if that began after `since_unix_s`.
        """
        if not self._pool.is_resident(checkpoint_id):
            return None
        self._pool.touch(checkpoint_id)
        self._note_use(checkpoint_id)
        brought = self._brought.get(checkpoint_id)
        if brought is not None and 0 < since_unix_s < brought.moving_at_unix_s:
            return brought
        return resident(self._pool.size_of(checkpoint_id))

    def order(self, checkpoint_id: str, *, ahead: bool = False) -> SharedWork[LoadState]:
        """Start or join a load of what is not resident. Raises: UnknownCheckpoint when SSD lacks it.

        `ahead` of need: it gives way to all others, until it is ordered or followed by somebody who needs it.
        """
        if (running := self._running.get(checkpoint_id)) is not None:
            if not ahead:
                running.promote()
            return running.work
        cached = self._cache.get(checkpoint_id)
        state, turn = LoadState(bytes_total=cached.size_bytes), self._turns.turn(is_ahead=ahead)
        load = _Load(state, asyncio.get_running_loop().create_future(), turn)
        self._begin(checkpoint_id, load)
        load.work.start(self._run(cached, load))
        return load.work

    def land(
        self, checkpoint_id: str, sizes: Sequence[int], chunk_lengths: Sequence[int], *, tier: str = "remote"
    ) -> Landing:
        """Room for partitions of `sizes` bytes that come from `tier` in chunks of `chunk_lengths`, in order.

        Loads that are asked for meanwhile join it, and so do readers once it is offered.
        Raises: PoolFull; Conflict when it is loading or resident already.
        """
        if checkpoint_id in self._running:
            raise Conflict(f"{checkpoint_id} is being loaded already", checkpoint_id=checkpoint_id)
        reserved = self._reserve(checkpoint_id, sizes)
        landing = Landing(
            checkpoint_id=checkpoint_id,
            extents=tuple(Extent(at.offset, size) for at, size in zip(reserved, sizes, strict=True)),
            board=ProgressBoard(chunk_lengths),
            views=self._memory.view,
            on_commit=lambda: self._pool.commit(checkpoint_id),
            on_abandon=lambda: self._pool.abandon(checkpoint_id),
        )
        state = LoadState(bytes_total=sum(sizes), from_tier=tier, moving_at_unix_s=time.time())
        load = _Load(state, landing.arrival)
        self._begin(checkpoint_id, load)
        load.work.start(self._run_landing(landing, load))
        return landing

    async def stop_unwanted(self, checkpoint_id: str) -> bool:
        """End a load from SSD that nobody waits for; False if there is none such."""
        load = self._running.get(checkpoint_id)
        if load is None or load.is_landing or self._is_wanted(checkpoint_id, load):
            return False
        load.work.task.cancel()
        await asyncio.gather(load.work.task, return_exceptions=True)
        return True

    async def arrival(self, checkpoint_id: str) -> Arrival:
        """Of what is on its way, once readers may follow it. Raises: UnknownCheckpoint, or why it failed."""
        if (load := self._running.get(checkpoint_id)) is None:
            raise UnknownCheckpoint(f"{checkpoint_id} is not on its way", checkpoint_id=checkpoint_id)
        load.followers += 1
        load.promote()
        try:
            return await asyncio.shield(load.arrival)
        finally:
            load.followers -= 1

    async def small_files(self, checkpoint_id: str) -> Path:
        """The folder of its small files, for one on its way or landed, once they are there.

        Raises: UnknownCheckpoint, or why it failed.
        """
        found = self.landed(checkpoint_id) or await self.arrival(checkpoint_id)
        return found.directory if found.files is None else await asyncio.shield(found.files)

    def condemn(self, cached: CachedCheckpoint, failure: FirstlightError) -> None:
        """Take a copy on SSD out of use that turned out to be wrong while nobody loaded it.

        One in DRAM, whose bytes are right, is read on: what stands beside them is in the specimen.
        """
        name = cached.checkpoint_id
        specimen = self._quarantine(cached, failure)
        if not self._pool.is_resident(name):
            return
        if failure.fields.get("chunk") is None:
            self._pool.condemn(name)  # not the weights are wrong, but what is read beside them
        else:
            self._landed[name] = Arrival(
                directory=specimen, manifest_digest=cached.manifest_digest, board=ProgressBoard([])
            )

    def landed(self, checkpoint_id: str) -> Arrival | None:
        """Of what is resident and did not come from SSD."""
        return self._landed.get(checkpoint_id) if self._pool.is_resident(checkpoint_id) else None

    async def until_begun(self, checkpoint_id: str) -> None:
        """Until it is on its way."""
        while checkpoint_id not in self._running:
            await self._begun.wait()

    async def close(self) -> None:
        await self.streams.close()
        tasks = [load.work.task for load in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, checkpoint_id: str, load: _Load) -> None:
        self._running[checkpoint_id] = load
        # A fresh event each time, so that nobody misses one between looking and waiting.
        begun, self._begun = self._begun, asyncio.Event()
        begun.set()

    def _leave(self, checkpoint_id: str) -> None:
        del self._running[checkpoint_id]
        if not self._running:
            self.on_idle()

    async def _run(self, cached: CachedCheckpoint, load: _Load) -> None:
        asked = time.monotonic()
        self._queued.append(load)
        assert load.turn is not None, "a load from SSD waits for its turn"
        try:
            async with load.turn:
                self._queued.remove(load)
                load.work.tell(replace(load.work.progress, queue_s=time.monotonic() - asked))
                await self._load(cached, load)
        except BaseException as failure:  # cancellation too: whoever waits to follow it must hear of it
            if isinstance(failure, CheckpointError):
                self._quarantine(cached, failure)
            stopped = isinstance(failure, asyncio.CancelledError)
            load.fail(Cancelled(f"the load of {cached.checkpoint_id} was stopped") if stopped else failure)
            raise
        finally:
            if load in self._queued:
                self._queued.remove(load)
            self._leave(cached.checkpoint_id)

    async def _load(self, cached: CachedCheckpoint, load: _Load) -> None:
        name = cached.checkpoint_id
        readable = await self._memory.open(cached.directory)
        sizes = readable.partition_sizes
        extents = await self._room(name, sizes)
        try:
            transfer = readable.begin(extents)
            load.work.tell(replace(load.work.progress, bytes_total=sum(sizes), moving_at_unix_s=time.time()))
            load.arrival.set_result(
                Arrival(
                    directory=cached.directory,
                    manifest_digest=cached.manifest_digest,
                    board=transfer.board,
                )
            )
            await self._follow(name, transfer, load)
        except BaseException:
            # The transfer has ended by now (its `wait` promises so): the room can go to another.
            self._pool.abandon(name)
            raise
        self._pool.commit(name)
        self._note_use(name)
        self._note_end(name, load)
        state = load.work.progress
        log.info("loaded checkpoint=%s bytes=%d in_s=%.3f", name, state.bytes_total, state.elapsed_s)

    def _is_wanted(self, checkpoint_id: str, load: _Load) -> bool:
        if load.work.is_watched or load.followers or self._pool.pins(checkpoint_id):
            load.wanted_s = time.monotonic()
            return True
        return False

    def _should_yield(self, checkpoint_id: str, load: _Load) -> bool:
        if self._is_wanted(checkpoint_id, load) or time.monotonic() - load.wanted_s < UNWANTED_S:
            return False
        return any(other.work.is_watched or other.followers for other in self._queued)

    async def _follow(self, name: str, transfer: Transfer, load: _Load) -> None:
        began = time.monotonic()
        waiting = asyncio.get_running_loop().create_task(transfer.wait())
        try:
            while not await self._ended_or_unwelcome(waiting, load):
                load.tell(bytes_done=transfer.bytes_done, began=began)
                if load.turn is not None and load.turn.keeps_waiting.is_set():
                    await self._give_way(name, transfer, load, load.turn)
                elif self._should_yield(name, load):
                    raise Cancelled(f"nobody waited for the load of {name}, and others wait for theirs")
        except (asyncio.CancelledError, Cancelled):
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            raise
        waiting.result()
        moving_at_unix_s = transfer.moving_at_unix_s or load.work.progress.moving_at_unix_s
        load.work.tell(
            replace(
                load.work.progress,
                moving_at_unix_s=moving_at_unix_s,
                checksum_cpu_s=transfer.checksum_cpu_s,
            )
        )
        load.done(began=began)

    @staticmethod
    async def _ended_or_unwelcome(waiting: asyncio.Task[None], load: _Load) -> bool:
        """Whether the transfer has ended; False at the next look, at once when it is in somebody's way."""
        watched: set[asyncio.Task[Any]] = {waiting}
        if load.is_ahead and load.turn is not None:
            watched.add(asyncio.get_running_loop().create_task(load.turn.keeps_waiting.wait()))
        await asyncio.wait(watched, timeout=PROGRESS_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        for other in watched - {waiting}:
            other.cancel()
        return waiting.done()

    async def _give_way(self, name: str, transfer: Transfer, load: _Load, turn: Turn) -> None:
        if self._is_wanted(name, load):
            turn.promote()
            return
        transfer.pause()
        load.is_held = True
        log.info("held checkpoint=%s at_bytes=%d: others want the device", name, transfer.bytes_done)
        turn.release()
        try:
            await turn.take()
        finally:
            load.is_held = False
        transfer.resume()

    async def _room(self, name: str, sizes: Sequence[int]) -> tuple[Extent, ...]:
        """Room in the pool, if need be of loads that are held. Raises: PoolFull, LargerThanPool."""
        while True:
            try:
                return self._reserve(name, sizes)
            except PoolFull:
                held = next((load for load in self._running.values() if load.is_held), None)
                if held is None:
                    raise
                held.work.task.cancel()
                await asyncio.gather(held.work.task, return_exceptions=True)

    async def _run_landing(self, landing: Landing, load: _Load) -> None:
        began = time.monotonic()
        name = landing.checkpoint_id
        try:
            while not (await asyncio.wait([landing.outcome], timeout=PROGRESS_INTERVAL_S))[0]:
                load.tell(bytes_done=landing.board.bytes_done, began=began)
            landing.outcome.result()
            if landing.arrival.done():
                self._landed[name] = landing.arrival.result()
            load.done(began=began)
            self._note_end(name, load)
            log.info("landed checkpoint=%s from=%s", name, load.work.progress.from_tier)
        except asyncio.CancelledError:
            landing.abandon(Cancelled(f"the landing of {name} was stopped"))
            raise
        finally:
            self._leave(name)

    def _reserve(self, checkpoint_id: str, sizes: Sequence[int]) -> tuple[Extent, ...]:
        room = self._pool.reserve(checkpoint_id, sizes, cost_s=sum(sizes) / self._bandwidth)
        for evicted in room.evicted:
            self._landed.pop(evicted, None)
            log.info("evicted from dram checkpoint=%s for=%s", evicted, checkpoint_id)
        return room.extents

    def _note_end(self, checkpoint_id: str, load: _Load) -> None:
        there = set(self._pool.checkpoint_ids)
        self._brought = {name: state for name, state in self._brought.items() if name in there}
        self._brought[checkpoint_id] = load.work.progress

    def _note_use(self, checkpoint_id: str) -> None:
        # What was landed may not be on SSD yet.
        if self._cache.find(checkpoint_id) is not None:
            with contextlib.suppress(OSError):
                self._cache.touch(checkpoint_id)

    def _quarantine(self, cached: CachedCheckpoint, failure: FirstlightError) -> Path:
        """Take a checkpoint whose bytes are wrong out of use; the next download brings it anew.

        Answers where it stands now.
        """
        specimen = cached.directory
        log.error("bad checkpoint=%s code=%s: %s", cached.checkpoint_id, failure.code, failure.message)
        if self._cache.find(cached.checkpoint_id) is not None:
            specimen = self._cache.quarantine(cached.checkpoint_id)
        failure.message = f"{failure.message}; it is quarantined on this host and must be downloaded again"
        failure.args = (failure.message,)
        return specimen

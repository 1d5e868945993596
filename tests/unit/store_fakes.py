"""A Memory that the test holds by the hand: transfers move when the test says so."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from firstlight.domain.errors import FirstlightError
from gpu_worker.store.extents import Extent
from gpu_worker.store.memory import Memory, Readable, Transfer
from gpu_worker.store.ssd_cache import SsdCache
from native_loader import ProgressBoard

MANIFEST = b'{"digest": "d1"}'


class HeldTransfer(Transfer):
    """Ends when the test calls `finish` or `fail`."""

    def __init__(
        self, memory: HeldMemory, directory: Path, extents: Sequence[Extent], *, first: int = 0
    ) -> None:
        self._first = first
        self._memory = memory
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.directory = directory
        self.extents = tuple(extents)
        self.was_cancelled = False
        self.is_paused = False
        self.asked_at_unix_s: float | None = None
        self.board = ProgressBoard([path.stat().st_size for path in _partitions(directory)])

    @property
    def bytes_done(self) -> int:
        return 0

    @property
    def moving_at_unix_s(self) -> float | None:
        return self.asked_at_unix_s

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    async def wait(self) -> None:
        try:
            await asyncio.shield(self._outcome)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise

    def finish(self) -> None:
        for index, extent in enumerate(self.extents):
            data = (self.directory / f"partition-{self._first + index}.bin").read_bytes()
            os.pwrite(self._memory.fd, data, extent.offset)
            self.board.mark_done(self._first + index)
        self._outcome.set_result(None)

    def fail(self, error: FirstlightError) -> None:
        self.board.fail()
        self._outcome.set_exception(error)


class HeldReadable(Readable):
    def __init__(self, memory: HeldMemory, directory: Path) -> None:
        self._memory, self._directory = memory, directory

    @property
    def partition_sizes(self) -> tuple[int, ...]:
        return tuple(path.stat().st_size for path in _partitions(self._directory))

    @property
    def chunk_lengths(self) -> tuple[int, ...]:
        return self.partition_sizes

    def begin_chunks(self, first: int, arena_offsets: Sequence[int]) -> HeldTransfer:
        lengths = self.chunk_lengths[first:]
        extents = [Extent(offset, length) for offset, length in zip(arena_offsets, lengths, strict=False)]
        return self._memory.begun(HeldTransfer(self._memory, self._directory, extents, first=first))

    def begin(self, extents: Sequence[Extent]) -> HeldTransfer:
        return self._memory.begun(HeldTransfer(self._memory, self._directory, extents))


class HeldMemory(Memory):
    """A memfd, and the transfers begun in it in order."""

    kind = "memfd"

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fd = os.memfd_create("arena")
        os.ftruncate(self.fd, size_bytes)
        self._mapped = mmap.mmap(self.fd, size_bytes)
        self.transfers: list[HeldTransfer] = []
        self._begun = asyncio.Event()

    def read_only_fd(self) -> int:
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY)

    def view(self, extent: Extent) -> memoryview:
        return memoryview(self._mapped)[extent.offset : extent.end]

    def prefault(self) -> None:
        return

    async def open(self, directory: Path) -> HeldReadable:
        return HeldReadable(self, directory)

    def begun(self, transfer: HeldTransfer) -> HeldTransfer:
        self.transfers.append(transfer)
        self._begun.set()
        return transfer

    async def transfer(self, index: int) -> HeldTransfer:
        """The transfer `index`, once it has begun."""
        async with asyncio.timeout(5):
            while len(self.transfers) <= index:
                self._begun.clear()
                await self._begun.wait()
        return self.transfers[index]


def _partitions(directory: Path) -> list[Path]:
    return sorted(directory.glob("partition-*.bin"))


def put(cache: SsdCache, checkpoint_id: str, *partitions: bytes) -> None:
    """Publish a checkpoint of these partitions."""
    with cache.reserving(checkpoint_id) as reserve:
        reserve(sum(map(len, partitions)) + len(MANIFEST))
        directory = cache.writing_dir(checkpoint_id)
        directory.mkdir()
        (directory / "manifest.json").write_bytes(MANIFEST)
        for index, partition in enumerate(partitions):
            (directory / f"partition-{index}.bin").write_bytes(partition)
        cache.publish(checkpoint_id)

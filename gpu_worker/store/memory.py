"""What the store asks of the native loader: an arena, and transfers of whole checkpoints into it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from gpu_worker.store.extents import Extent
from native_loader import ProgressBoard


class Transfer(ABC):
    """One checkpoint on its way into the arena, on threads of the loader's own.

    `board` tells which of its chunks are there; other processes can watch it.
    """

    board: ProgressBoard
    # What verifying cost its threads; known at its end.
    checksum_cpu_s: float = 0.0

    @property
    @abstractmethod
    def bytes_done(self) -> int:
        """Bytes that are there and verified."""

    @property
    @abstractmethod
    def moving_at_unix_s(self) -> float | None:
        """When the first of them was asked for; None before that."""

    @abstractmethod
    def pause(self) -> None:
        """Leave the device to others at the next chunk, until `resume`."""

    @abstractmethod
    def resume(self) -> None:
        """Go on after `pause`."""

    @abstractmethod
    async def wait(self) -> None:
        """Until every byte is there. When it returns or raises, nothing writes to the extents any more.

        Raises: ChecksumMismatch, ReadFailed, CheckpointMissing.
        """


class Readable(ABC):
    """A checkpoint on SSD that can be brought into the arena."""

    @property
    @abstractmethod
    def partition_sizes(self) -> tuple[int, ...]:
        """Bytes of each partition."""

    @property
    @abstractmethod
    def chunk_lengths(self) -> tuple[int, ...]:
        """Bytes of each chunk, in the order in which they are read."""

    @abstractmethod
    def begin_chunks(self, first: int, arena_offsets: Sequence[int]) -> Transfer:
        """Begin to read chunks from `first` on, one to each offset. Raises: as `begin`."""

    @abstractmethod
    def begin(self, extents: Sequence[Extent]) -> Transfer:
        """Begin to read it into `extents`, one a partition. Raises: CheckpointMissing, ReadFailed."""


class Memory(ABC):
    """The arena of one host."""

    kind: str
    size_bytes: int

    @abstractmethod
    def read_only_fd(self) -> int:
        """A new descriptor that can only be mapped for reading; the caller closes it."""

    @abstractmethod
    def view(self, extent: Extent) -> memoryview:
        """Writable bytes of the arena itself."""

    @abstractmethod
    def prefault(self) -> None:
        """Make the whole arena resident; blocks for as long as that takes."""

    @abstractmethod
    async def open(self, directory: Path) -> Readable:
        """A checkpoint, manifest and file sizes validated; the event loop is never held for long.

        Raises: CheckpointError, ReadFailed.
        """

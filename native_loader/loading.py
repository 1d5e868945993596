"""A load under way, its tensors bound already: work on the first begins before the last is read.

    memory   |embedding|layer 0|layer 1|layer 2| ... |head|
             <---- is there ------>|<- still zeros ------>     wait(name) goes along with the load

Reading a tensor before it was waited for reads zeros or half of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

from firstlight.domain.errors import FirstlightError
from native_loader._native import Arena, LoadJob, LoadReport, Segment
from native_loader.available_memory import check_memory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class BoundTensors:
    """Tensors over memory that is being filled.

    `settle` holds, for the few that could not lie where they were read to, what puts their bytes in place
    once they are there.
    """

    tensors: dict[str, torch.Tensor]
    settle: dict[str, Callable[[], None]] = field(default_factory=dict)


class LoadPlan(ABC):
    """What is read to where, and which part of it each tensor needs."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory the load fills, at least 1."""

    @abstractmethod
    def segments(self) -> Sequence[Segment]:
        """In the order of reading."""

    @abstractmethod
    def prefix_bytes(self) -> Mapping[str, int]:
        """For every name, how much of the load must be there for it to be."""

    @abstractmethod
    def bind(self, arena: Arena) -> BoundTensors:
        """Tensors over the arena, without reading it. Raises: AttachFailed."""

    def explain(self, failure: FirstlightError) -> FirstlightError:
        """A failed load's error in the terms of what is loaded."""
        return failure


class Loading:
    """Private, writable memory that fills in execution order; every byte with a checksum is verified.

    Dropping it, or leaving it as a context manager, stops a load that has not ended. The tensors keep their
    memory alive by themselves.
    Raises: PoolFull, CheckpointMissing, ReadFailed, AttachFailed from the constructor; what a load raises
    (ChecksumMismatch, ReadFailed, ManifestInvalid, Cancelled) from every wait.
    """

    def __init__(self, plan: LoadPlan, *, threads: int | None) -> None:
        self._plan = plan
        check_memory(plan.memory_bytes)
        # Anonymous memory: private to this process and its forks, and made of huge pages where it can be.
        with Arena(plan.memory_bytes, kind="anonymous") as arena:
            # Fresh memory costs as much as the reading: it is made resident piece by piece beside it.
            self._job = LoadJob(arena, plan.segments(), threads=threads, populate=True)
            self._prefix_bytes = plan.prefix_bytes()
            # After the start: binding, and importing torch for it, take their time while the disk works.
            bound = plan.bind(arena)
        self._tensors = bound.tensors
        self._settle = bound.settle
        self._settling = Lock()

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Every tensor, there or not, in execution order."""
        return self._tensors

    @property
    def bytes_total(self) -> int:
        return self._job.bytes_total

    @property
    def bytes_done(self) -> int:
        """Bytes read and verified."""
        return self._job.bytes_done

    def wait(self, name: str, timeout_s: float | None = None) -> torch.Tensor:
        """The tensor, once all of it is there. Raises: KeyError, TimeoutError, or what went wrong."""
        self.wait_prefix((name,), timeout_s)
        return self._tensors[name]

    def wait_prefix(self, names: Iterable[str], timeout_s: float | None = None) -> None:
        """Until all of these are there. Raises: KeyError, TimeoutError, or what went wrong."""
        wanted = list(names)
        needed = max((self._prefix_bytes[name] for name in wanted), default=0)
        if not self._job.wait_prefix(needed, timeout_s):
            self._report(0)  # raises what went wrong, or TimeoutError
        self._put_in_place(wanted)

    def arrivals(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor under every name as it arrives."""
        for name in sorted(self._tensors, key=self._prefix_bytes.__getitem__):
            yield name, self.wait(name)

    def result(self, timeout_s: float | None = None) -> dict[str, torch.Tensor]:
        """All tensors, once all bytes are there. Raises: TimeoutError, or what went wrong."""
        self._report(timeout_s)
        self._put_in_place(list(self._settle))
        return dict(self._tensors)

    def report(self) -> LoadReport:
        """What the load did. Waits; raises as `result` does."""
        return self._report(None)

    def _report(self, timeout_s: float | None) -> LoadReport:
        try:
            return self._job.result(timeout_s)
        except FirstlightError as failure:
            explained = self._plan.explain(failure)
            if explained is failure:
                raise
            raise explained from failure

    def cancel(self) -> None:
        """Stops at the next chunk; a wait for what is not there raises Cancelled from then on."""
        self._job.cancel()

    def _put_in_place(self, names: Iterable[str]) -> None:
        if not self._settle:
            return
        with self._settling:
            for name in names:
                settle = self._settle.pop(name, None)
                if settle is not None:
                    settle()

    def __enter__(self) -> Loading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

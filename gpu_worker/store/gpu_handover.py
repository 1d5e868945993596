"""The part of the handover that concerns GPUs: an engine lends memory, the store fills it.

JSON lines on the reader's own connection, see handover.py:
    -> {"gpu_copy": "m@r", "chunk_bytes": N, "targets": [{"gpu": uuid, "handle": hex} for each partition]}
                         <- {"gpu_copying": "m@r"}, with the descriptor of the copy's ProgressBoard attached
    -> {"gpu_outcome": "m@r"}
                         <- {"gpu_copied": "m@r", "pinned_bytes", "bounced_bytes", "pageable_bytes",
                             "seconds", "waited_s"}, once it has ended
The reader holds a pin on the checkpoint, resident or on its way. It frees the memory after the outcome, or
with its process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from firstlight.domain.errors import GpuUnavailable, InvalidInput
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.gpu_copies import GpuCopies, GpuTarget
from gpu_worker.store.gpu_devices import GpuDevices
from gpu_worker.store.pool import Pool
from gpu_worker.store.reach import Reach
from native_loader import Arena, GpuDevice

SMALLEST_CHUNK_BYTES = 2**20


class GpuHandover:
    """Answers the messages above. On a host without GPUs every one of them is refused."""

    def __init__(self, *, devices: GpuDevices | None, copies: GpuCopies | None) -> None:
        self._devices = devices
        self._copies = copies

    @classmethod
    def of(cls, config: StoreConfig, arena: Arena) -> GpuHandover:
        if not config.cuda_library:
            return cls(devices=None, copies=None)
        devices = GpuDevices(library=config.cuda_library, arena=arena)
        return cls(devices=devices, copies=GpuCopies(devices=devices, arena=arena))

    def start(self) -> None:
        if self._devices is not None:
            self._devices.start()

    def pin(self) -> None:
        """Blocks; for the thread that has made the arena resident."""
        if self._devices is not None:
            self._devices.pin()

    async def first_device(self) -> GpuDevice | None:
        """None on a host without GPUs. Waits for the driver's start. Raises: GpuUnavailable, GpuError."""
        return await self._devices.first() if self._devices is not None else None

    def bytes_done(self, checkpoint_id: str) -> int:
        return self._copies.bytes_done(checkpoint_id) if self._copies is not None else 0

    # Any: decoded JSON from the socket, checked here.
    async def answer(
        self, request: Mapping[str, Any], *, reader: str, pool: Pool, reach: Reach
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """A reply and the descriptors that go with it. Raises: GpuError, InvalidInput, NotFound, Conflict."""
        if self._copies is None:
            raise GpuUnavailable("this store has no GPUs")
        match request:
            case {"gpu_copy": str(checkpoint_id), "chunk_bytes": int(chunk_bytes), "targets": list(listed)}:
                return await self._copy(self._copies, checkpoint_id, chunk_bytes, listed, reader, pool, reach)
            case {"gpu_outcome": str(checkpoint_id)}:
                return await self._outcome(self._copies, checkpoint_id, reader), ()
        raise InvalidInput("expected gpu_copy with chunk_bytes and targets, or gpu_outcome")

    async def drop_reader(self, reader: str) -> None:
        if self._copies is not None:
            await self._copies.drop_reader(reader)

    async def close(self) -> None:
        if self._copies is not None:
            await self._copies.close()
        if self._devices is not None:
            await asyncio.to_thread(self._devices.close)

    async def _copy(
        self,
        copies: GpuCopies,
        checkpoint_id: str,
        chunk_bytes: int,
        listed: list[Any],
        reader: str,
        pool: Pool,
        reach: Reach,
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        extents = pool.pinned_by(checkpoint_id, reader)
        if chunk_bytes < SMALLEST_CHUNK_BYTES or len(listed) != len(extents):
            raise InvalidInput(f"{checkpoint_id} has {len(extents)} partitions, and chunks of at least 1 MiB")
        targets = [_target(one) for one in listed]
        arrival = await reach.reach(checkpoint_id) if pool.is_loading(checkpoint_id) else None
        # A load that failed meanwhile may have begun anew, elsewhere in the arena: that one is not pinned.
        extents = pool.pinned_by(checkpoint_id, reader)
        board = await copies.begin(
            reader,
            checkpoint_id,
            extents=extents,
            targets=targets,
            chunk_bytes=chunk_bytes,
            source_board=arrival.board if arrival is not None else None,
        )
        return {"gpu_copying": checkpoint_id}, (board.read_only_fd(),)

    async def _outcome(self, copies: GpuCopies, checkpoint_id: str, reader: str) -> dict[str, Any]:
        reports = await copies.outcome(reader)
        return {
            "gpu_copied": checkpoint_id,
            "pinned_bytes": sum(report.pinned_bytes for report in reports),
            "bounced_bytes": sum(report.bounced_bytes for report in reports),
            "pageable_bytes": sum(report.pageable_bytes for report in reports),
            "seconds": max((report.seconds for report in reports), default=0.0),
            "waited_s": max((report.waited_s for report in reports), default=0.0),
        }


# Any: one target of the JSON list.
def _target(described: Any) -> GpuTarget:
    match described:
        case {"gpu": str(gpu), "handle": str(handle)}:
            try:
                return GpuTarget(gpu=gpu, handle=bytes.fromhex(handle))
            except ValueError as failure:
                raise InvalidInput("a handle is hexadecimal") from failure
    raise InvalidInput("a target is {'gpu': uuid, 'handle': hexadecimal}")

"""A checkpoint's weights in this engine's GPU memory: lent to the store, which fills it from its arena.

    engine   allocates | asks ....................| binds, and waits part by part as on a CPU
    store              | opens, copies as bytes come from SSD or network, marks a board, closes

Where the store cannot (no driver, no context, another namespace), the engine copies the same bytes itself out
of the arena it has mapped: slower, since its view of the arena is not pinned, and as right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from firstlight.domain.errors import Cancelled, Conflict, EngineGone, FirstlightError, GpuError, InvalidInput
from gpu_worker.engine.gpu_binding import AsBytes, bytes_on_gpu, tensors_on_gpu
from gpu_worker.engine.store_link import GpuLoan, Pinned, StoreLink, Streaming
from gpu_worker.engine.weights_gate import LOOK_S
from native_loader import Checkpoint, CudaDriver, GpuCopyJob, GpuDevice, GpuMemory, ProgressBoard
from native_loader.gpu_chunks import GpuChunks, gpu_chunks, gpu_chunks_of_ring

log = logging.getLogger("engine.gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWeights:
    """Tensors whose bytes come; `board` tells which are there, as a load into DRAM does.

    `job` is this engine's own copy where the store made none. Memory lives as long as the tensors.
    """

    tensors: Mapping[str, torch.Tensor]
    board: ProgressBoard
    jobs: tuple[GpuCopyJob, ...] = ()

    @property
    def is_from_store(self) -> bool:
        return not self.jobs


class GpuPlace:
    """One GPU of this engine. Opening it is the driver's start: a spare does that ahead."""

    def __init__(
        self, index: int, *, library: str = "libcuda.so.1", as_bytes: AsBytes = bytes_on_gpu
    ) -> None:
        """Raises: GpuUnavailable, GpuError."""
        self.device: GpuDevice = CudaDriver(library).open(index)
        self._as_bytes = as_bytes

    async def stream(self, checkpoint: Checkpoint, streaming: Streaming, link: StoreLink) -> GpuWeights:
        """A checkpoint larger than the store's pool, out of its ring; returns when all of it is there.

        A chunk's slot goes back to the store when the chunk is on the GPU.
        Raises: GpuMemoryFull, GpuError, what ended the stream, EngineGone, AttachFailed.
        """
        manifest = checkpoint.manifest
        sizes = [partition.size_bytes for partition in manifest.partitions]
        memories = [await asyncio.to_thread(self.device.allocate, size_bytes) for size_bytes in sizes]
        chunks = gpu_chunks_of_ring(
            sizes,
            offset=streaming.offset,
            slots=streaming.slots,
            slot_bytes=streaming.slot_bytes,
            chunk_bytes=manifest.chunk_bytes,
        )
        board = ProgressBoard(chunks.lengths)
        jobs = _start(memories, link, chunks, board, streaming.board)
        for index in range(board.chunks):
            if not await asyncio.to_thread(_has_come, board, index, link):
                await self._say_why(jobs, index, link)
            await link.taken(index + 1)
        blocks = [self._as_bytes(memory) for memory in memories]
        return GpuWeights(tensors=tensors_on_gpu(manifest, blocks), board=board, jobs=jobs)

    async def _say_why(self, jobs: tuple[GpuCopyJob, ...], index: int, link: StoreLink) -> None:
        """Raises: what ended the stream in the store, or the copy here."""
        for job in jobs:
            job.cancel()
        # The store knows why a stream ended, and says so in place of a note; else it was the copy.
        await link.taken(index)
        for job in jobs:
            with contextlib.suppress(Cancelled):
                await asyncio.to_thread(job.result)
        raise EngineGone("the stream of this model's weights ended early")

    async def put(
        self, checkpoint_id: str, checkpoint: Checkpoint, pinned: Pinned, link: StoreLink
    ) -> GpuWeights:
        """Room for every partition, bytes on their way, tensors over it.

        Raises: GpuMemoryFull, GpuError, EngineGone, AttachFailed.
        """
        sizes = [size_bytes for _, size_bytes in pinned.extents]
        memories = [await asyncio.to_thread(self.device.allocate, size_bytes) for size_bytes in sizes]
        tensors = tensors_on_gpu(checkpoint.manifest, [self._as_bytes(memory) for memory in memories])
        try:
            loans = [GpuLoan(gpu=self.device.facts.uuid, handle=memory.handle()) for memory in memories]
            board = await link.copy_to_gpu(checkpoint_id, loans, chunk_bytes=checkpoint.manifest.chunk_bytes)
        except (GpuError, InvalidInput, Conflict) as refusal:
            log.warning("the store does not copy to this GPU, the engine does: %s", refusal.message)
            return self._copy_here(checkpoint, pinned, link, memories, tensors)
        return GpuWeights(tensors=tensors, board=board)

    def _copy_here(
        self,
        checkpoint: Checkpoint,
        pinned: Pinned,
        link: StoreLink,
        memories: list[GpuMemory],
        tensors: Mapping[str, torch.Tensor],
    ) -> GpuWeights:
        sizes = [size_bytes for _, size_bytes in pinned.extents]
        offsets = [offset for offset, _ in pinned.extents]
        chunks = gpu_chunks(sizes, offsets, chunk_bytes=checkpoint.manifest.chunk_bytes)
        board = ProgressBoard(chunks.lengths)
        jobs = _start(memories, link, chunks, board, pinned.board)
        return GpuWeights(tensors=tensors, board=board, jobs=jobs)


def _start(
    memories: Sequence[GpuMemory],
    link: StoreLink,
    chunks: GpuChunks,
    board: ProgressBoard,
    source_board: ProgressBoard | None,
) -> tuple[GpuCopyJob, ...]:
    return tuple(
        GpuCopyJob(memory, link.view, listed, board, source_board=source_board)
        for memory, listed in zip(memories, chunks.of_partition, strict=True)
    )


def _has_come(board: ProgressBoard, index: int, link: StoreLink) -> bool:
    while not board.wait_chunk(index, LOOK_S):
        if board.has_failed or link.is_lost:
            return False
    return True


async def say_outcome(weights: GpuWeights, checkpoint_id: str, link: StoreLink) -> None:
    """Log how the bytes came, or why they did not; the board has told everybody else."""
    try:
        if weights.is_from_store:
            outcome = await link.gpu_outcome(checkpoint_id)
            log.info("the store copied checkpoint=%s to the GPU: %s", checkpoint_id, outcome)
            return
        for job in weights.jobs:
            report = await asyncio.to_thread(job.result)
            log.info(
                "copied checkpoint=%s bytes=%d in_s=%.3f", checkpoint_id, report.size_bytes, report.seconds
            )
    except FirstlightError as failure:
        log.error("checkpoint=%s did not come to the GPU: %s", checkpoint_id, failure.message)

"""A checkpoint larger than the store's pool, brought chunk by chunk into memory of this engine's own."""

from __future__ import annotations

import asyncio

import torch

from firstlight.domain.errors import EngineGone
from gpu_worker.engine.store_link import StoreLink, Streaming
from gpu_worker.engine.weights_gate import LOOK_S
from native_loader import Arena, Checkpoint
from native_loader.load_order import Chunk, chunks_in_order


async def stream_in(checkpoint: Checkpoint, streaming: Streaming, link: StoreLink) -> dict[str, torch.Tensor]:
    """Every byte copied out of the ring, and tensors over the copy, which they keep alive.

    Raises: PoolFull when this machine has not so much memory, what ended the stream, EngineGone.
    """
    manifest = checkpoint.manifest
    sizes = [partition.size_bytes for partition in manifest.partitions]
    offsets, total_bytes = manifest.arena_offsets()
    with Arena(total_bytes, "anonymous") as memory:
        for index, chunk in enumerate(chunks_in_order(sizes, manifest.chunk_bytes)):
            slot = streaming.offset + index % streaming.slots * streaming.slot_bytes
            target = offsets[chunk.partition] + chunk.start
            if not await asyncio.to_thread(_copy, streaming, link, memory, index, slot, chunk, target):
                # The store knows why, and says so in place of a note.
                await link.taken(index)
                raise EngineGone("the stream of this model's weights ended early")
            await link.taken(index + 1)
        return checkpoint.bind(
            [memory.buffer(offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        )


def _copy(
    streaming: Streaming, link: StoreLink, memory: Arena, index: int, slot: int, chunk: Chunk, target: int
) -> bool:
    """Once chunk `index` is in its slot; False when it will not come."""
    while not streaming.board.wait_chunk(index, LOOK_S):
        if streaming.board.has_failed or link.is_lost:
            return False
    memory.write(target, link.view.buffer(slot, chunk.length))
    return True

"""How fast pinned memory reaches a GPU: the copy that a load makes, on a small scale."""

from __future__ import annotations

from native_loader import Arena, GpuChunk, GpuCopyJob, GpuDevice, GpuPinning, ProgressBoard

COPY_BYTES = 64 * 2**20
PASSES = 3


def measure_copy(device: GpuDevice) -> float:
    """Bytes a second, the best of a few passes. Blocks for some tens of milliseconds.

    Takes `COPY_BYTES` of the GPU meanwhile. Raises: GpuError, PoolFull.
    """
    target = device.allocate(COPY_BYTES)
    try:
        with Arena(COPY_BYTES, "anonymous") as arena:
            arena.prefault()
            pinning = GpuPinning(device, arena)
            try:
                pinning.wait()
                chunks = [GpuChunk(source_offset=0, device_offset=0, length=COPY_BYTES, index=0)]
                seconds = min(
                    GpuCopyJob(target, arena, chunks, ProgressBoard([COPY_BYTES]), pinning=pinning)
                    .result()
                    .seconds
                    for _ in range(PASSES)
                )
            finally:
                pinning.close()
    finally:
        target.close()
    return COPY_BYTES / max(seconds, 1e-9)

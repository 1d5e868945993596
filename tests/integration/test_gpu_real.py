"""The path to a GPU, on a real one; skipped where there is none and only a stand-in of the driver is met."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from firstlight.domain.errors import GpuError
from gpu_worker.engine.gpu_binding import bytes_on_gpu
from gpu_worker.engine.gpu_weights import GpuPlace
from gpu_worker.engine.store_link import StoreLink
from gpu_worker.store.config import StoreConfig
from native_loader import (
    Arena,
    CudaDriver,
    GpuCopyJob,
    GpuPinning,
    LoadJob,
    ProgressBoard,
    open_checkpoint,
    save_checkpoint,
)
from native_loader.gpu_chunks import gpu_chunks
from tests.integration.engine_fixtures import put_in_cache
from tests.integration.test_store_process import running_store

MIB = 2**20
MODEL = "real@aaaa"


def why_not() -> str:
    try:
        return "" if CudaDriver().gpus() else "the CUDA driver shows no GPU"
    except GpuError as absent:
        return absent.message


WHY = why_not()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=f"needs a GPU: {WHY}")]
needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch is built without CUDA here")


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real") / MODEL
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
    state = {
        f"layer.{number}": torch.randint(0, 255, (24 * MIB,), dtype=torch.uint8).view(kinds[number % 4])
        for number in range(8)
    }
    save_checkpoint(
        {**state, "tied": state["layer.0"], "turned": state["layer.1"].view(1024, -1).t()}, directory
    )
    return directory


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("is_pinned", [True, False])
def test_ssd_to_gpu_is_exact(checkpoint_dir: Path, streams: int, is_pinned: bool) -> None:
    checkpoint = open_checkpoint(checkpoint_dir)
    device = CudaDriver().open(0)
    with Arena(checkpoint.size_bytes) as arena:
        pinning = GpuPinning(device, arena, piece_bytes=64 * MIB) if is_pinned else None
        segments = checkpoint.segments([0])
        source_board = ProgressBoard([segment.length for segment in segments])
        chunks = gpu_chunks([checkpoint.size_bytes], [0], chunk_bytes=checkpoint.manifest.chunk_bytes)
        memory = device.allocate(checkpoint.size_bytes)
        board = ProgressBoard(chunks.lengths)
        load = LoadJob(arena, segments, populate=True, board=source_board)
        job = GpuCopyJob(
            memory,
            arena,
            chunks.of_partition[0],
            board,
            source_board=source_board,
            pinning=pinning,
            streams=streams,
        )
        report = job.result(60)
        load.result()
        assert report.size_bytes == checkpoint.size_bytes == board.bytes_done
        assert report.pageable_bytes == 0
        assert memory.read(0, checkpoint.size_bytes) == (checkpoint_dir / "partition-0.bin").read_bytes()
        del job


WRITER = """
import sys
from native_loader import Arena, CudaDriver, GpuChunk, GpuCopyJob, ProgressBoard
handle, size = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
memory = CudaDriver().open(0).open_memory(handle, size)
with Arena(size) as arena:
    arena.write(0, bytes(range(256)) * (size // 256))
    chunk = GpuChunk(source_offset=0, device_offset=0, length=size, index=0)
    GpuCopyJob(memory, arena, [chunk], ProgressBoard([size])).result(60)
memory.close()
"""


def test_another_process_fills_our_memory() -> None:
    size_bytes = 48 * MIB
    memory = CudaDriver().open(0).allocate(size_bytes)
    subprocess.run([sys.executable, "-c", WRITER, memory.handle().hex(), str(size_bytes)], check=True)
    assert memory.read(0, size_bytes) == bytes(range(256)) * (size_bytes // 256)


@needs_torch
def test_torch_sees_the_memory_itself() -> None:
    memory = CudaDriver().open(0).allocate(4 * MIB)
    tensor = bytes_on_gpu(memory)
    assert tensor.data_ptr() == memory.pointer and tensor.device.index == 0
    tensor.fill_(7)
    torch.cuda.synchronize()
    assert memory.read(0, 4 * MIB) == bytes([7]) * (4 * MIB)


@needs_torch
async def test_a_store_fills_an_engines_tensors(checkpoint_dir: Path, tmp_path: Path) -> None:
    config = StoreConfig(
        host_id="host-a",
        state_dir=str(tmp_path / "store"),
        ssd_capacity_bytes=4 << 30,
        dram_capacity_bytes=1 << 30,
        cuda_library="libcuda.so.1",
    )
    put_in_cache(config.ssd_root, checkpoint_dir, MODEL)
    async with running_store(config):
        link = await StoreLink.connect(str(config.socket_path))
        checkpoint = open_checkpoint(checkpoint_dir)
        pinned = await link.pin(MODEL, while_loading=True)
        weights = await GpuPlace(0).put(MODEL, checkpoint, pinned, link)
        assert weights.is_from_store
        assert await asyncio.to_thread(weights.board.wait_prefix, checkpoint.size_bytes, 120)
        content = memoryview((checkpoint_dir / "partition-0.bin").read_bytes())
        for name, wanted in checkpoint.bind([content]).items():
            found = weights.tensors[name]
            assert found.stride() == wanted.stride()
            same = found.cpu().contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8)
            assert torch.equal(*same), name
        assert weights.tensors["tied"].data_ptr() == weights.tensors["layer.0"].data_ptr()
        assert (await link.gpu_outcome(MODEL))["pageable_bytes"] == 0
        await link.close()

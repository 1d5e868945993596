"""Copies to a GPU, against a stand-in of the CUDA driver (no GPU): whole and in order, or a clear error."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.domain.errors import (
    Cancelled,
    GpuError,
    GpuMemoryFull,
    GpuUnavailable,
    InvalidInput,
    ReadFailed,
)
from native_loader import (
    Arena,
    CudaDriver,
    GpuChunk,
    GpuCopyJob,
    GpuDevice,
    GpuPinning,
    ProgressBoard,
)
from native_loader.gpu_chunks import gpu_chunks, gpu_chunks_of_ring
from tests.native.cuda_standin.standin import (
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    NOT_PERMITTED,
    OUT_OF_MEMORY,
    Standin,
    library,
)

MIB = 1 << 20
SIZE = 24 * MIB
CHUNK = 3 * MIB


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(7).randbytes(SIZE)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """With slow, uneven copies; whatever a test does, all that was lent must be given back."""
    monkeypatch.setenv("STANDIN_CUDA_DELAY_US", "2000")
    standin = Standin()
    gc.collect()
    before = standin.live
    yield standin
    gc.collect()
    assert standin.live == before


@pytest.fixture
def device(standin: Standin) -> GpuDevice:
    return CudaDriver(library()).open(0)


@pytest.fixture
def arena(content: bytes) -> Iterator[Arena]:
    with Arena(SIZE) as arena:
        arena.write(0, content)
        yield arena


def chunks_of(size: int = SIZE, *, length: int = CHUNK) -> list[GpuChunk]:
    return [
        GpuChunk(
            source_offset=at,
            device_offset=at,
            length=min(length, size - at),
            index=index,
            source_prefix_bytes=min(at + length, size),
        )
        for index, at in enumerate(range(0, size, length))
    ]


def board_of(chunks: list[GpuChunk]) -> ProgressBoard:
    return ProgressBoard([chunk.length for chunk in chunks])


def test_a_machine_without_a_driver_says_so() -> None:
    with pytest.raises(GpuUnavailable, match=r"no CUDA driver on this machine: /nowhere/libcuda\.so\.1"):
        CudaDriver("/nowhere/libcuda.so.1")


def test_a_driver_without_a_gpu_says_so() -> None:
    program = (
        "import sys; from native_loader import CudaDriver\n"
        "try: CudaDriver(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, library()],
        env={**os.environ, "STANDIN_CUDA_DEVICES": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith("GpuUnavailable cuInit: CUDA_ERROR_NO_DEVICE")


def test_what_the_driver_says_of_its_gpus(standin: Standin) -> None:
    driver = CudaDriver(library())
    before = standin.contexts
    gpus = driver.gpus()
    assert [gpu.index for gpu in gpus] == [0, 1]
    assert gpus[0].name == "Stand-in GPU 0 (host memory)"
    assert gpus[0].memory_bytes == 4 << 30
    assert len(gpus[0].uuid) == 32 and gpus[0].uuid != gpus[1].uuid
    assert driver.version == 13000
    assert standin.contexts == before, "asking took memory of a GPU"
    device = driver.open(1)
    assert standin.contexts == before + 1
    del device
    assert standin.contexts == before
    with pytest.raises(GpuUnavailable, match="no GPU 2: the driver shows 2"):
        driver.open(2)


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("pinned", ["all", "pieces", "nothing"])
@pytest.mark.parametrize("length", [CHUNK, 1_000_001])
def test_every_byte_arrives(
    standin: Standin, device: GpuDevice, arena: Arena, content: bytes, streams: int, pinned: str, length: int
) -> None:
    memory = device.allocate(SIZE)
    pinning = None
    if pinned != "nothing":
        pinning = GpuPinning(device, arena, piece_bytes=10 * MIB if pinned == "pieces" else SIZE)
        assert pinning.wait(10)
        assert (pinning.pinned_bytes, pinning.refusal) == (SIZE, None)
    chunks = chunks_of(length=length)
    board = board_of(chunks)
    standin.most_copies()
    job = GpuCopyJob(
        memory,
        arena,
        chunks,
        board,
        pinning=pinning,
        streams=streams,
        piece_bytes=2 * MIB,
        bounce_bytes=2 * MIB,
    )
    report = job.result(30)
    assert memory.read(0, SIZE) == content
    assert report.size_bytes == job.bytes_done == job.bytes_total == board.bytes_done == SIZE
    assert report.pinned_bytes == (0 if pinned == "nothing" else SIZE)
    assert report.bounced_bytes == (SIZE if pinned == "nothing" else 0)
    # A thread that a busy machine keeps off its core joins late: not all five need to have met.
    assert min(streams, 3) <= standin.most_copies() <= streams, "the streams did not copy at one time"


def test_a_pinning_that_is_not_finished_serves_what_it_has(
    standin: Standin, device: GpuDevice, arena: Arena, content: bytes
) -> None:
    """Refused in the midst: what was pinned before is copied straight, the rest through the ring."""
    with standin.failing("cuMemHostRegister_v2", NOT_PERMITTED, after=1):
        pinning = GpuPinning(device, arena, piece_bytes=10 * MIB)
        assert pinning.wait(10)
    assert pinning.pinned_bytes == 10 * MIB
    assert pinning.refusal == "cuMemHostRegister: CUDA_ERROR_NOT_PERMITTED (operation not permitted)"
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    report = GpuCopyJob(memory, arena, chunks, board_of(chunks), pinning=pinning).result(30)
    assert memory.read(0, SIZE) == content
    assert report.pinned_bytes == 10 * MIB
    assert report.bounced_bytes == SIZE - 10 * MIB


def test_a_driver_that_pins_nothing_still_loads(
    standin: Standin, device: GpuDevice, arena: Arena, content: bytes
) -> None:
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    with standin.failing("cuMemHostRegister_v2", NOT_PERMITTED):
        report = GpuCopyJob(memory, arena, chunks, board_of(chunks)).result(30)
    assert memory.read(0, SIZE) == content
    assert report.pageable_bytes == SIZE


def test_bytes_follow_their_source(standin: Standin, device: GpuDevice, content: bytes) -> None:
    """Nothing is copied before it is there, and what is there does not wait for the rest."""
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    source_board, board = board_of(chunks), board_of(chunks)
    with Arena(SIZE) as arena:
        pinning = GpuPinning(device, arena)
        job = GpuCopyJob(memory, arena, chunks, board, source_board=source_board, pinning=pinning)
        for chunk in chunks:
            assert not board.is_chunk_done(chunk.index)
            assert job.bytes_done == chunk.source_offset
            end = chunk.source_offset + chunk.length
            arena.write(chunk.source_offset, content[chunk.source_offset : end])
            source_board.mark_done(chunk.index)
            assert board.wait_prefix(end, 10)
            assert memory.read(chunk.device_offset, chunk.length) == content[chunk.source_offset : end]
        assert job.result(10).waited_s > 0


def test_a_source_cut_otherwise_is_followed_too(standin: Standin, device: GpuDevice, content: bytes) -> None:
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    source_board, board = ProgressBoard([SIZE // 2, SIZE // 2]), board_of(chunks)
    with Arena(SIZE) as arena:
        job = GpuCopyJob(memory, arena, chunks, board, source_board=source_board)
        arena.write(0, content[: SIZE // 2])
        source_board.mark_done(0)
        assert board.wait_prefix(SIZE // 2, 10)
        arena.write(SIZE // 2, content[SIZE // 2 :])
        source_board.mark_done(1)
        job.result(10)
    assert memory.read(0, SIZE) == content


def test_a_source_that_fails_fails_the_copy(standin: Standin, device: GpuDevice, arena: Arena) -> None:
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    source_board, board = board_of(chunks), board_of(chunks)
    job = GpuCopyJob(memory, arena, chunks, board, source_board=source_board)
    source_board.mark_done(0)
    assert board.wait_prefix(CHUNK, 10)
    source_board.fail()
    with pytest.raises(ReadFailed, match="did not arrive"):
        job.result(10)
    assert board.has_failed
    assert board.prefix_bytes == CHUNK


def test_cancel_ends_it_at_a_chunk(standin: Standin, device: GpuDevice, arena: Arena) -> None:
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    source_board, board = board_of(chunks), board_of(chunks)
    job = GpuCopyJob(memory, arena, chunks, board, source_board=source_board)
    source_board.mark_done(0)
    assert board.wait_prefix(CHUNK, 10)
    assert not job.wait(0.01)
    job.cancel()
    assert job.wait(10)
    with pytest.raises(Cancelled):
        job.result()
    assert board.has_failed and board.bytes_done == CHUNK


def test_dropping_a_job_ends_its_threads(standin: Standin, device: GpuDevice, arena: Arena) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    job = GpuCopyJob(memory, arena, chunks, board_of(chunks), source_board=board_of(chunks))
    assert threads() >= before + 2
    del job
    assert threads() == before


CALLS = ("cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuEventSynchronize", "cuStreamCreate", "cuEventCreate")


@pytest.mark.parametrize("call", [*CALLS, "cuCtxPushCurrent_v2"])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("is_sticky", [False, True])
def test_a_driver_that_fails_gives_a_clear_error_or_every_byte(
    standin: Standin, device: GpuDevice, arena: Arena, content: bytes, call: str, after: int, is_sticky: bool
) -> None:
    memory = device.allocate(SIZE)
    chunks = chunks_of()
    board = board_of(chunks)
    with standin.failing(call, ILLEGAL_ADDRESS, after=after, is_sticky=is_sticky):
        try:
            GpuCopyJob(memory, arena, chunks, board).result(30)
            error = None
        except GpuError as failure:
            error = failure
    done = [chunk for chunk in chunks if board.is_chunk_done(chunk.index)]
    for chunk in done:
        start = chunk.source_offset
        assert memory.read(chunk.device_offset, chunk.length) == content[start : start + chunk.length]
    if error is None:
        assert len(done) == len(chunks)
        assert call in ("cuCtxPushCurrent_v2", "cuStreamCreate"), "an error of the driver was swallowed"
    else:
        assert error.fields["driver_error"] == "CUDA_ERROR_ILLEGAL_ADDRESS"
        assert "an illegal memory access was encountered" in error.message
        assert len(done) < len(chunks)


def test_a_gpu_without_room_says_how_much_was_wanted(standin: Standin, device: GpuDevice) -> None:
    before = device.free_bytes
    with pytest.raises(GpuMemoryFull, match=r"8589934592 bytes on Stand-in GPU 0 .*CUDA_ERROR_OUT_OF_MEMORY"):
        device.allocate(8 << 30)
    with standin.failing("cuMemAlloc_v2", OUT_OF_MEMORY), pytest.raises(GpuMemoryFull):
        device.allocate(MIB)
    memory = device.allocate(MIB)
    assert before - device.free_bytes == 2 * MIB, "blocks of 2 MiB, which share nothing"
    memory.close()
    assert device.free_bytes == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_offset": SIZE - 1},
        {"source_offset": 2**64 - 1},
        {"device_offset": SIZE},
        {"device_offset": 2**64 - CHUNK},
        {"length": 0},
        {"length": 2**63},
        {"index": 1},
        {"source_prefix_bytes": CHUNK + 1},
    ],
)
def test_chunks_that_make_no_sense_are_refused(
    standin: Standin, device: GpuDevice, arena: Arena, wrong: dict[str, int]
) -> None:
    good = {"source_offset": 0, "device_offset": 0, "length": CHUNK, "index": 0, "source_prefix_bytes": CHUNK}
    chunk = GpuChunk(**{**good, **wrong})
    with pytest.raises(InvalidInput):
        GpuCopyJob(
            device.allocate(SIZE), arena, [chunk], ProgressBoard([CHUNK]), source_board=ProgressBoard([CHUNK])
        )


def test_only_the_boards_owner_can_have_it_marked(standin: Standin, device: GpuDevice, arena: Arena) -> None:
    fd = ProgressBoard([CHUNK]).read_only_fd()
    try:
        watched = ProgressBoard.attach(fd)
    finally:
        os.close(fd)
    with pytest.raises(InvalidInput, match="of this process"):
        GpuCopyJob(device.allocate(SIZE), arena, chunks_of()[:1], watched)


def test_partitions_go_to_their_gpus_side_by_side(standin: Standin, arena: Arena, content: bytes) -> None:
    driver = CudaDriver(library())
    memories = [driver.open(index).allocate(SIZE // 2) for index in (0, 1)]
    chunks = chunks_of()
    board = board_of(chunks)
    halves = [
        [
            GpuChunk(
                source_offset=chunk.source_offset,
                device_offset=chunk.source_offset - half * SIZE // 2,
                length=chunk.length,
                index=chunk.index,
            )
            for chunk in chunks
            if chunk.source_offset // (SIZE // 2) == half
        ]
        for half in (0, 1)
    ]
    jobs = [GpuCopyJob(memory, arena, half, board) for memory, half in zip(memories, halves, strict=True)]
    for job in jobs:
        job.result(30)
    assert board.is_ended and not board.has_failed
    assert memories[0].read(0, SIZE // 2) + memories[1].read(0, SIZE // 2) == content


COPIER = """
import sys
from native_loader import Arena, CudaDriver, GpuChunk, GpuCopyJob, ProgressBoard
library, handle, size, path = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
device = CudaDriver(library).open(0)
memory = device.open_memory(handle, size)
with Arena(size) as arena:
    arena.write(0, open(path, "rb").read())
    GpuCopyJob(memory, arena, [GpuChunk(source_offset=0, device_offset=0, length=size, index=0)],
               ProgressBoard([size])).result(30)
memory.close()
print("copied")
"""


def test_another_process_fills_memory_by_its_handle(
    standin: Standin, device: GpuDevice, tmp_path: Path, content: bytes
) -> None:
    memory = device.allocate(SIZE)
    (tmp_path / "bytes").write_bytes(content)
    command = [
        sys.executable,
        "-c",
        COPIER,
        library(),
        memory.handle().hex(),
        str(SIZE),
        str(tmp_path / "bytes"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "copied"
    assert memory.read(0, SIZE) == content


def test_handles_that_cannot_be_opened(standin: Standin, device: GpuDevice) -> None:
    memory = device.allocate(SIZE)
    with pytest.raises(GpuError) as own:
        device.open_memory(memory.handle(), SIZE)
    assert own.value.fields["driver_error"] == "CUDA_ERROR_INVALID_CONTEXT"
    with pytest.raises(GpuError):
        device.open_memory(bytes(64), SIZE)
    with pytest.raises(InvalidInput, match="64 bytes"):
        device.open_memory(b"short", SIZE)
    with standin.failing("cuIpcGetMemHandle", INVALID_CONTEXT), pytest.raises(GpuError):
        memory.handle()


def test_closing_takes_nothing_from_under_a_copy(standin: Standin, device: GpuDevice, content: bytes) -> None:
    arena = Arena(SIZE)
    arena.write(0, content)
    memory, pinning = device.allocate(SIZE), GpuPinning(device, arena)
    chunks = chunks_of()
    board = board_of(chunks)
    job = GpuCopyJob(memory, arena, chunks, board, pinning=pinning)
    view = GpuCopyJob(memory, arena, chunks, board_of(chunks))
    for owner in (arena, pinning):
        owner.close()
    job.result(30)
    view.result(30)
    assert memory.read(0, SIZE) == content
    memory.close()
    with pytest.raises(InvalidInput, match="closed"):
        memory.read(0, 1)


def test_waiting_for_a_copy_lets_other_threads_run(standin: Standin, device: GpuDevice, arena: Arena) -> None:
    chunks = chunks_of()
    memory = device.allocate(SIZE)
    job = GpuCopyJob(memory, arena, chunks, board_of(chunks), source_board=board_of(chunks))
    turns = 0
    stop = threading.Event()

    def turn() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1

    thread = threading.Thread(target=turn)
    thread.start()
    assert not job.wait(0.05)
    stop.set()
    thread.join()
    assert turns > 1000
    job.cancel()


def test_memory_describes_itself_as_bytes_on_a_gpu(standin: Standin, device: GpuDevice) -> None:
    memory = device.allocate(MIB)
    # What torch.as_tensor looks for.
    described = memory.__cuda_array_interface__
    assert described["shape"] == (MIB,)
    assert described["typestr"] == "|u1"
    assert described["data"] == (memory.pointer, False)
    assert described["version"] == 3


def test_partitions_advance_together_each_to_its_own_gpu(standin: Standin, content: bytes) -> None:
    """One load's order over two partitions, the second shorter: a prefix of it is on both."""
    sizes, offsets = [10 * MIB, 7 * MIB + 4096], [12 * MIB, 2 * MIB]
    planned = gpu_chunks(sizes, offsets, chunk_bytes=4 * MIB)
    assert planned.lengths == [4 * MIB, 4 * MIB, 4 * MIB, 3 * MIB + 4096, 2 * MIB]
    driver = CudaDriver(library())
    memories = [driver.open(index).allocate(size) for index, size in enumerate(sizes)]
    source_board, board = ProgressBoard(planned.lengths), ProgressBoard(planned.lengths)
    with Arena(SIZE) as arena:
        arena.write(0, content)
        jobs = [
            GpuCopyJob(memory, arena, listed, board, source_board=source_board)
            for memory, listed in zip(memories, planned.of_partition, strict=True)
        ]
        for index in range(len(planned.lengths)):
            source_board.mark_done(index)
            assert board.wait_prefix(sum(planned.lengths[: index + 1]), 10)
        for job in jobs:
            job.result(10)
    for memory, size, offset in zip(memories, sizes, offsets, strict=True):
        assert memory.read(0, size) == content[offset : offset + size]


def test_a_ring_gives_each_chunk_its_slot() -> None:
    planned = gpu_chunks_of_ring(
        [5 * MIB, 3 * MIB], offset=MIB, slots=3, slot_bytes=2 * MIB, chunk_bytes=2 * MIB
    )
    places = sorted(
        (chunk.index, chunk.source_offset, chunk.device_offset, chunk.source_prefix_bytes)
        for listed in planned.of_partition
        for chunk in listed
    )
    assert places == [
        (0, 1 * MIB, 0, 2 * MIB),
        (1, 3 * MIB, 0, 4 * MIB),
        (2, 5 * MIB, 2 * MIB, 6 * MIB),
        (3, 1 * MIB, 2 * MIB, 7 * MIB),
        (4, 3 * MIB, 4 * MIB, 8 * MIB),
    ]

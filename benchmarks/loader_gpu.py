"""To a GPU: from DRAM against the machine's own pinned copy, from SSD against fio; bit for bit.

python -m benchmarks.loader_gpu [--size-gib N] [--rounds N] [--json FILE]

Needs a GPU. Where there is none nothing is measured, and it says so: what is tested there is the code's path,
against a stand-in of the driver (tests/native/test_gpu_copy.py, tests/integration/test_gpu_weights.py).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loader_files import prepare_files, remove_files
from benchmarks.loader_limit import Limit, find_limit
from benchmarks.loader_page_cache import drop
from benchmarks.pinned_copy import PinnedCopy
from benchmarks.report import Report
from firstlight.domain.errors import GpuError
from native_loader import (
    Arena,
    Checkpoint,
    CudaDriver,
    GpuCopyJob,
    GpuDevice,
    GpuMemory,
    GpuPinning,
    LoadJob,
    ProgressBoard,
    open_checkpoint,
)
from native_loader.gpu_chunks import gpu_chunks

LIBRARY = "libcuda.so.1"
GIB, MIB = 1 << 30, 1 << 20
SIZE_GIB = 8.0  # large enough that a GPU's copy takes a tenth of a second
DRAM_FIGURE, DRAM_BOUND = "DRAM → GPU, rate / the machine's own pinned copy", ">= 0.95 ×"
SSD_FIGURE, SSD_BOUND = "SSD → GPU, rate / fio", ">= 0.95 ×"


class NotExact(RuntimeError):
    """The GPU's bytes are not the file's."""


@dataclass(frozen=True, slots=True)
class GpuRound:
    """Bytes a second, all of one round."""

    own_copy: float
    dram_to_gpu: float
    ssd_to_gpu: float
    limit: float


def why_no_gpu(library: str = LIBRARY) -> str:
    """Empty where there is one."""
    try:
        return (
            ""
            if CudaDriver(library).gpus()
            else "no GPU here; the path was run against a stand-in of the driver"
        )
    except GpuError as absent:
        return f"no GPU here ({absent.message}); the path was run against a stand-in of the driver"


def measure_gpu(checkpoint: Path, limit: Limit, *, rounds: int, library: str = LIBRARY) -> list[GpuRound]:
    """All four in every round, in turn. Raises: GpuError, NotExact, PageCacheUnwilling, FioRefused."""
    device = CudaDriver(library).open(0)
    with _Bench.of(open_checkpoint(checkpoint), device) as bench, PinnedCopy(library) as own:
        bench.from_ssd()  # pages and clocks warm; not counted
        bench.require_exact()
        return [_round(bench, own, limit) for _ in range(rounds)]


def report_gpu(
    report: Report, directory: Path, *, rounds: int, size_gib: float = SIZE_GIB, library: str = LIBRARY
) -> None:
    """Write a checkpoint below `directory`, measure, remove it; or say why nothing is measured."""
    if why := why_no_gpu(library):
        for name, bound in ((DRAM_FIGURE, DRAM_BOUND), (SSD_FIGURE, SSD_BOUND)):
            report.not_measured(name, bound=bound, why=why)
        return
    files = prepare_files(directory, int(size_gib * GIB))
    try:
        limit = find_limit(files.partition)
        report.notes.append(f"to a GPU: the limit is {limit}")
        add_to(report, measure_gpu(files.checkpoint, limit, rounds=rounds, library=library))
    finally:
        remove_files(files)


def add_to(report: Report, rounds: Sequence[GpuRound]) -> None:
    """Rows, and the figures against their bounds: medians of each round's own ratio."""
    for name, values in (
        ("the machine's own pinned copy", [one.own_copy for one in rounds]),
        ("DRAM → GPU", [one.dram_to_gpu for one in rounds]),
        ("SSD → GPU", [one.ssd_to_gpu for one in rounds]),
    ):
        report.add(name, [value / 1e9 for value in values], unit="GB/s")
    for name, ratios in (
        (DRAM_FIGURE, [one.dram_to_gpu / one.own_copy for one in rounds]),
        (SSD_FIGURE, [one.ssd_to_gpu / one.limit for one in rounds]),
    ):
        row = report.add(name, ratios, unit="ratio")
        if row is not None:
            report.require(name, row.p50, unit="×", at_least=0.95)


@dataclass(frozen=True)
class _Bench:
    """A checkpoint's place in pinned DRAM and on the GPU."""

    checkpoint: Checkpoint
    arena: Arena
    offsets: Sequence[int]
    pinning: GpuPinning
    memories: list[GpuMemory]

    @classmethod
    @contextmanager
    def of(cls, checkpoint: Checkpoint, device: GpuDevice) -> Iterator[_Bench]:
        offsets, total_bytes = checkpoint.manifest.arena_offsets()
        with Arena(total_bytes) as arena:
            arena.prefault(threads=4)
            pinning = GpuPinning(device, arena)
            pinning.wait()
            sizes = [partition.size_bytes for partition in checkpoint.manifest.partitions]
            memories = [device.allocate(size_bytes) for size_bytes in sizes]
            try:
                yield cls(checkpoint, arena, offsets, pinning, memories)
            finally:
                pinning.close()
                for memory in memories:
                    memory.close()

    def from_dram(self, source_board: ProgressBoard | None = None) -> float:
        """Seconds until the last byte is on the GPU."""
        sizes = [memory.size_bytes for memory in self.memories]
        chunks = gpu_chunks(sizes, self.offsets, chunk_bytes=self.checkpoint.manifest.chunk_bytes)
        board = ProgressBoard(chunks.lengths)
        began_s = time.perf_counter()
        jobs = [
            GpuCopyJob(memory, self.arena, listed, board, source_board=source_board, pinning=self.pinning)
            for memory, listed in zip(self.memories, chunks.of_partition, strict=True)
        ]
        for job in jobs:
            job.result()
        return time.perf_counter() - began_s

    def from_ssd(self) -> float:
        """Cold, verified on the way; the copy follows the reads chunk by chunk."""
        segments = self.checkpoint.segments(self.offsets)
        drop({Path(segment.path) for segment in segments})
        board = ProgressBoard([segment.length for segment in segments])
        began_s = time.perf_counter()
        load = LoadJob(self.arena, segments, board=board)
        self.from_dram(board)
        load.result()
        return time.perf_counter() - began_s

    def require_exact(self) -> None:
        """Raises: NotExact."""
        for memory, offset in zip(self.memories, self.offsets, strict=True):
            for at in range(0, memory.size_bytes, 64 * MIB):
                length = min(64 * MIB, memory.size_bytes - at)
                if memory.read(at, length) != bytes(self.arena.buffer(offset + at, length)):
                    raise NotExact(f"the GPU's bytes differ within {length} from {at}")


def _round(bench: _Bench, own: PinnedCopy, limit: Limit) -> GpuRound:
    size_bytes = bench.checkpoint.size_bytes
    files = {Path(segment.path) for segment in bench.checkpoint.segments(bench.offsets)}
    drop(files)
    readings = [limit.read(file) for file in sorted(files)]
    return GpuRound(
        own_copy=own.bytes_per_s(bench.memories[0], size_bytes),
        dram_to_gpu=size_bytes / bench.from_dram(),
        ssd_to_gpu=size_bytes / bench.from_ssd(),
        limit=sum(reading.size_bytes for reading in readings) / sum(reading.seconds for reading in readings),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size-gib", type=float, default=SIZE_GIB)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=Path(".firstlight/benchmarks/loader"))
    arguments = parser.parse_args()
    report = Report("loader to a GPU")
    report_gpu(report, arguments.directory, rounds=arguments.rounds, size_gib=arguments.size_gib)
    report.print()
    if arguments.json:
        report.write(arguments.json)
    return 1 if report.has_failed else 0


if __name__ == "__main__":
    sys.exit(main())

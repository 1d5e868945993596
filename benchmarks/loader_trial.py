"""One load in a process of its own.

    python -m benchmarks.loader_trial WAY DIRECTORY [STORE_ADDRESS_FILE]

Imports and prepares, says "ready", waits for a line, loads, and prints what it took as JSON. The caches are
put into their state before it is started; between "ready" and the line they are seen to be in it still.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loader_files import BenchmarkFiles, checksum
from benchmarks.loader_usage import checksum_cpu_s, cpu_s, memory, reset_peak
from benchmarks.loader_ways import Setting, Tensors, way_named

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Seconds since the call until it returned, until every page was touched, until every byte was summed.

    CPU seconds count this process and the store, up to the same moments. Memory is what the load added.
    """

    returned_s: float
    resident_s: float
    checked_s: float
    returned_cpu_s: float
    resident_cpu_s: float
    # Part of it; 0 where nothing was verified, or nobody said.
    checksum_cpu_s: float
    private_bytes: int
    shared_bytes: int
    peak_bytes: int
    wrong: tuple[str, ...]


def main() -> int:
    way = way_named(sys.argv[1])
    files = BenchmarkFiles(Path(sys.argv[2]))
    store = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    # Standard output is for what this program says; a peer's own prints go where warnings go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    expected: dict[str, int] = files.expected["crc32c"]
    load = way.prepare(Setting(files, store))
    others = [int(json.loads(store.read_text())["pid"])] if store and way.store else []
    before = memory()
    print("ready", file=answers, flush=True)
    sys.stdin.readline()

    reset_peak()
    cpu_before, began_s = cpu_s(others), time.perf_counter()
    loaded = load()
    returned_s, returned_cpu = time.perf_counter() - began_s, cpu_s(others) - cpu_before
    tensors: Tensors = loaded if isinstance(loaded, Mapping) else loaded.state_dict()
    touching_s, touching_cpu = time.perf_counter(), cpu_s(others)
    touch(tensors)
    resident_s = returned_s + time.perf_counter() - touching_s
    resident_cpu = returned_cpu + cpu_s(others) - touching_cpu
    after = memory()
    resumed_s = time.perf_counter()
    sums = {name: checksum(tensor) for name, tensor in tensors.items()}
    checked_s = resident_s + time.perf_counter() - resumed_s
    wrong = sorted(name for name in expected.keys() | sums.keys() if expected.get(name) != sums.get(name))
    taken = Taken(
        returned_s=returned_s,
        resident_s=resident_s,
        checked_s=checked_s,
        returned_cpu_s=returned_cpu,
        resident_cpu_s=resident_cpu,
        checksum_cpu_s=sum(ask() for ask in checksum_cpu_s),
        private_bytes=after.private_bytes - before.private_bytes,
        shared_bytes=after.shared_bytes - before.shared_bytes,
        peak_bytes=after.peak_bytes - before.private_bytes - before.shared_bytes,
        wrong=tuple(wrong[:5]),
    )
    print(json.dumps(asdict(taken)), file=answers, flush=True)
    # Tearing gigabytes down in order is nobody's load.
    os._exit(0)


def touch(tensors: Tensors) -> int:
    """Read one byte of every page of every tensor."""
    import torch

    total = 0
    for tensor in tensors.values():
        if tensor.numel():
            total += int(tensor.detach().view(-1).view(torch.uint8)[::PAGE_BYTES].sum())
    return total


if __name__ == "__main__":
    raise SystemExit(main())

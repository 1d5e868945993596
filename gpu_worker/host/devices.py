"""Which torch device an engine on a GPU index runs on, and what the GPUs are. Imports no torch for it.

The driver is asked in a process of its own (`python -m gpu_worker.host.devices LIBRARY`): a process that has
started it cannot fork workers that use it, and one that hangs in it would take the supervisor along.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from firstlight.domain.errors import GpuError, GpuUnavailable, InvalidSettings

# The driver of a machine with eight GPUs takes seconds to start, without its persistence daemon many.
ASK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver describes it."""

    index: int
    name: str
    memory_bytes: int
    uuid: str


def resolve_device(configured: str) -> str:
    """`cpu` or `cuda`. "auto" is cuda where there is a driver and torch was built for it."""
    if configured != "auto":
        return configured
    has_driver = Path("/dev/nvidiactl").exists()
    return "cuda" if has_driver and "+cpu" not in metadata.version("torch") else "cpu"


def device_of(kind: str, gpu_index: int) -> str:
    """On the CPU every slot is the same device; a GPU is its own."""
    return "cpu" if kind == "cpu" else f"cuda:{gpu_index}"


def devices(kind: str, gpu_count: int) -> tuple[str, ...]:
    """Every device that wants spares of its own."""
    return tuple(dict.fromkeys(device_of(kind, index) for index in range(gpu_count)))


async def gpus_of_host(kind: str, *, gpu_count: int, library: str) -> tuple[Gpu, ...]:
    """The first `gpu_count` GPUs; none on a CPU. Raises: GpuUnavailable, InvalidSettings for too few."""
    if kind == "cpu":
        return ()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpu_worker.host.devices",
        library,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            answer, said = await process.communicate()
    except TimeoutError as failure:
        raise GpuUnavailable(f"the CUDA driver does not answer within {ASK_TIMEOUT_S:.0f} s") from failure
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise GpuUnavailable(f"the GPUs of this host cannot be used: {last}")
    found = tuple(Gpu(**one) for one in json.loads(answer))
    if len(found) < gpu_count:
        raise InvalidSettings(f"gpu_count is {gpu_count}, but the driver shows {len(found)} GPUs")
    return found[:gpu_count]


def ask_driver(library: str) -> list[Gpu]:
    """Raises: GpuError."""
    from native_loader import CudaDriver

    return [
        Gpu(index=facts.index, name=facts.name, memory_bytes=facts.memory_bytes, uuid=facts.uuid)
        for facts in CudaDriver(library).gpus()
    ]


def main() -> int:
    try:
        print(json.dumps([asdict(gpu) for gpu in ask_driver(sys.argv[1])]))
    except GpuError as failure:
        print(failure.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

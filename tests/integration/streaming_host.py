"""The parts of one store that download, in this process, around a planner that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.store.download_order import DownloadOrder, DownloadState
from gpu_worker.store.downloads import Downloads
from gpu_worker.store.loads import Loads
from gpu_worker.store.native_memory import NativeMemory
from gpu_worker.store.pool import Pool
from gpu_worker.store.shared_work import SharedWork
from gpu_worker.store.ssd_cache import SsdCache
from gpu_worker.store.streaming.planner import Planner

MIB = 2**20
NAME = "tiny@aaaa1111"


@dataclass(frozen=True)
class StreamingHost:
    """`root` is its SSD."""

    root: Path
    cache: SsdCache
    pool: Pool
    loads: Loads
    downloads: Downloads

    def order(
        self,
        source: str,
        *,
        name: str = NAME,
        dtype: str = "bfloat16",
        digest: str = "",
        into_dram: bool = True,
    ) -> SharedWork[DownloadState]:
        return self.downloads.order(
            DownloadOrder(
                checkpoint_id=name, source=source, dtype=dtype, expected_digest=digest, into_dram=into_dram
            )
        )

    def partition(self, name: str = NAME) -> bytes:
        return (self.cache.get(name).directory / "partition-0.bin").read_bytes()

    def staged(self) -> list[Path]:
        return list((self.root / "staging").iterdir())


@asynccontextmanager
async def streaming_host(
    root: Path,
    planner: Planner | None,
    *,
    dram_bytes: int = 200 * MIB,
    ssd_bytes: int = 400 * MIB,
    parallelism: int = 4,
) -> AsyncIterator[StreamingHost]:
    """Without a planner every download is fetched and converted whole."""
    memory = NativeMemory(size_bytes=dram_bytes, threads=2)
    pool = Pool(capacity_bytes=memory.size_bytes)
    cache = SsdCache(root=root, capacity_bytes=ssd_bytes)
    loads = Loads(cache=cache, pool=pool, memory=memory, ssd_read_bytes_per_s=1e9)
    downloads = Downloads(
        cache=cache, fetch_parallelism=parallelism, planner=planner, loads=loads if planner else None
    )
    try:
        yield StreamingHost(root, cache, pool, loads, downloads)
    finally:
        await downloads.end()
        await loads.close()
        pool.check_integrity()
        cache.close()

"""The platform's store process, kept running for a benchmark; its pool is pre-faulted before anything runs.

The store is the real one, `python -m gpu_worker.store`; readers talk to it as engines do.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from benchmarks.loader_files import CHECKPOINT_ID, BenchmarkFiles
from benchmarks.loader_page_cache import BLOCK_BYTES
from firstlight.rpc import store_pb2, store_pb2_grpc
from gpu_worker.engine.store_link import StoreLink
from gpu_worker.store.config import StoreConfig

PATIENCE_S = 120.0
POOL_SLACK_BYTES = 64 << 20


class StoreFailed(RuntimeError):
    """The store did not start, or not in time."""


def pool_bytes(files: BenchmarkFiles) -> int:
    """Room for the checkpoint, and a little more."""
    return files.partition.stat().st_size + POOL_SLACK_BYTES


class BenchmarkStore:
    """A running store that holds the benchmark's checkpoint on its SSD. A context manager."""

    def __init__(self, files: BenchmarkFiles, state_dir: Path) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        config = StoreConfig(
            host_id="bench-loader",
            state_dir=str(state_dir),
            ssd_dir=str(files.ssd_root),
            ssd_capacity_bytes=8 * files.size_bytes,
            dram_capacity_bytes=pool_bytes(files),
        )
        config.address_file.unlink(missing_ok=True)
        self._log = (state_dir / "store.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu_worker.store", "--config-json", config.to_json()], stderr=self._log
        )
        self._config = config

    def __enter__(self) -> BenchmarkStore:
        try:
            self.record = self._published()
            self._channel = grpc.insecure_channel(str(self.record["address"]))
            self._stub = store_pb2_grpc.StoreStub(self._channel)
            self._wait_until_faulted()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._end()

    @property
    def address_file(self) -> Path:
        """Where readers find the store: {"address", "socket", "pid"}."""
        return self._config.address_file

    @property
    def arena_kind(self) -> str:
        return str(self._stub.Inventory(store_pb2.InventoryRequest()).arena_kind)

    def make_cold(self) -> None:
        """The checkpoint on SSD only."""
        give_up_s = time.monotonic() + PATIENCE_S
        while any(one.in_dram for one in self._stub.Inventory(store_pb2.InventoryRequest()).checkpoints):
            try:
                self._stub.Remove(store_pb2.RemoveRequest(checkpoint_id=CHECKPOINT_ID, only_dram=True))
            except grpc.RpcError:
                # Pinned until the store has noticed that the last reader went.
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.02)

    def make_warm(self) -> None:
        """The checkpoint in the pool, every byte just read: as a file is that was put into the page cache."""
        for _ in self._stub.Load(store_pb2.LoadRequest(checkpoint_id=CHECKPOINT_ID)):
            pass
        asyncio.run(_read_pool(str(self.record["socket"])))

    # Any: the JSON of the address file.
    def _published(self) -> Mapping[str, Any]:
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            if self._process.poll() is not None or time.monotonic() > give_up_s:
                raise StoreFailed(f"the store did not start; see {self._log.name}")
            try:
                record: Mapping[str, Any] = json.loads(self._config.address_file.read_text())
                return record
            except (OSError, ValueError):
                time.sleep(0.02)

    def _wait_until_faulted(self) -> None:
        """A pool whose pages are there is what a resident store is for; wait until its size is its memory."""
        status = Path(f"/proc/{self._process.pid}/smaps_rollup")
        wanted_kib = self._config.dram_capacity_bytes // 1024
        give_up_s = time.monotonic() + PATIENCE_S
        while sum(_kib(status, field) for field in ("Rss", "Shared_Hugetlb", "Private_Hugetlb")) < wanted_kib:
            if time.monotonic() > give_up_s:
                raise StoreFailed("the store's pool was not made resident in time")
            time.sleep(0.05)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


async def _read_pool(socket_path: str) -> None:
    link = await StoreLink.connect(socket_path)
    try:
        pinned = await link.pin(CHECKPOINT_ID)
        block = bytearray(BLOCK_BYTES)
        for offset, size_bytes in pinned.extents:
            content = link.view.buffer(offset, size_bytes)
            for at in range(0, size_bytes, BLOCK_BYTES):
                part = content[at : at + BLOCK_BYTES]
                block[: len(part)] = part
    finally:
        await link.close()


def _kib(status: Path, field: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0

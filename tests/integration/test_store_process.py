"""One real store process on real files: load, hand over, evict, quarantine, die and come back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from firstlight.domain.errors import (
    ChecksumMismatch,
    Conflict,
    InvalidName,
    PoolFull,
    SourceUnsupported,
    UnknownCheckpoint,
)
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import StoreClient
from firstlight.rpc.store_pb2 import LoadProgress, StoredCheckpoint
from gpu_worker.store.config import StoreConfig
from tests.integration.store_checkpoints import put_checkpoint
from tests.integration.store_processes import until
from tests.integration.store_reader import Reader

MIB = 2**20
A, B, C = "a@aaaa", "b@aaaa", "c@aaaa"


@dataclass(frozen=True)
class RunningStore:
    client: StoreClient
    address: str
    config: StoreConfig
    process: asyncio.subprocess.Process

    async def load(self, checkpoint_id: str) -> LoadProgress:
        """Load to the end; the last message."""
        return [step async for step in self.client.load(checkpoint_id)][-1]

    async def row(self, checkpoint_id: str) -> StoredCheckpoint:
        inventory = await self.client.inventory()
        rows = [one for one in inventory.checkpoints if one.checkpoint_id == checkpoint_id]
        return rows[0] if rows else StoredCheckpoint()

    async def until_pins(self, checkpoint_id: str, pins: int) -> None:
        async with asyncio.timeout(10):
            while (await self.row(checkpoint_id)).pins != pins:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running_store(config: StoreConfig) -> AsyncIterator[RunningStore]:
    Path(config.address_file).unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gpu_worker.store", "--config-json", config.to_json()
    )
    try:
        await until(
            lambda: config.address_file.exists() or process.returncode is not None,
            within_s=30,
            what="the store serves",
        )
        assert process.returncode is None, "the store ended at its start"
        address = json.loads(config.address_file.read_text())["address"]
        async with Channels() as channels:
            yield RunningStore(StoreClient(channels, address), address, config, process)
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(10):
                await process.wait()


def small_store(folder: Path) -> StoreConfig:
    """Room in DRAM for two of the three checkpoints of 5 MiB (6 MiB in granules)."""
    for seed, name in enumerate((A, B, C)):
        put_checkpoint(folder / "ssd", name, size_bytes=5 * MIB, seed=seed)
    return StoreConfig(
        host_id="host-t",
        state_dir=str(folder),
        ssd_capacity_bytes=100 * MIB,
        dram_capacity_bytes=12 * MIB,
    )


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return small_store(tmp_path)


@pytest.fixture
async def store(config: StoreConfig) -> AsyncIterator[RunningStore]:
    async with running_store(config) as running:
        yield running


def partition(store: RunningStore, name: str) -> bytes:
    return (store.config.ssd_root / "checkpoints" / name / "partition-0.bin").read_bytes()


def read(store: RunningStore, name: str) -> tuple[Reader, list[bytes]]:
    reader = Reader(str(store.config.socket_path))
    return reader, reader.bytes_of(name)


async def test_loaded_bytes_are_handed_over_and_the_second_load_is_from_dram(store: RunningStore) -> None:
    first = await store.load(A)
    assert first.done and first.from_tier == "ssd" and first.bytes_done == first.bytes_total >= 5 * MIB
    assert first.moving_at_unix_s > 0
    reader, parts = await asyncio.to_thread(read, store, A)
    assert parts == [partition(store, A)]
    again = await store.load(A)
    assert again.done and again.from_tier == "dram" and again.moving_at_unix_s == 0
    row = await store.row(A)
    assert row.in_dram and row.on_ssd and row.pins == 1 and not row.loading
    reader.close()
    await store.until_pins(A, 0)


async def test_concurrent_loads_of_one_are_one_and_of_two_are_queued(store: RunningStore) -> None:
    a1, a2, b = await asyncio.gather(store.load(A), store.load(A), store.load(B))
    assert a1.done and a2.done and b.done
    assert max(a1.queue_s, b.queue_s) > 0
    inventory = await store.client.inventory()
    assert inventory.queued_bytes == 0 and inventory.dram_used_bytes == 12 * MIB
    assert inventory.dram_capacity_bytes == 12 * MIB
    assert inventory.ssd_used_bytes == sum(one.size_bytes for one in inventory.checkpoints)
    assert inventory.arena_kind in ("hugetlb", "tmpfs", "tmpfs-huge", "memfd")


async def test_pins_of_a_killed_reader_are_freed_and_hold_until_then(store: RunningStore) -> None:
    await store.load(A)
    await store.load(B)
    program = str(Path(__file__).with_name("store_reader.py"))
    readers = []
    for name in (A, B):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            program,
            str(store.config.socket_path),
            name,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        readers.append(process)
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["pinned"] == name
    with pytest.raises(PoolFull):
        await store.load(C)
    with pytest.raises(Conflict):
        await store.client.remove(A)
    readers[0].kill()
    await store.until_pins(A, 0)
    assert (await store.load(C)).done
    assert not (await store.row(A)).in_dram and (await store.row(B)).in_dram
    readers[1].kill()
    await asyncio.gather(*(reader.wait() for reader in readers))
    await store.until_pins(B, 0)


async def test_a_flipped_byte_is_found_quarantined_and_said(store: RunningStore) -> None:
    path = store.config.ssd_root / "checkpoints" / A / "partition-0.bin"
    with path.open("r+b") as file:
        file.seek(1 * MIB)
        byte = file.read(1)
        file.seek(1 * MIB)
        file.write(bytes([byte[0] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(ChecksumMismatch, match="quarantined"):
        await store.load(A)
    row = await store.row(A)
    assert row.quarantined and not row.on_ssd and not row.in_dram
    assert (await store.client.inventory()).dram_used_bytes == 0
    with pytest.raises(UnknownCheckpoint):
        await store.load(A)
    assert (await store.load(B)).done


async def test_a_load_that_a_hint_has_ended_is_told_to_the_start_it_was_for(store: RunningStore) -> None:
    before_unix_s = time.time()
    first = await store.load(A)
    again = [step async for step in store.client.load(A, since_unix_s=before_unix_s)][-1]
    assert (again.from_tier, again.moving_at_unix_s) == ("ssd", first.moving_at_unix_s) and again.done
    later = [step async for step in store.client.load(A, since_unix_s=time.time())][-1]
    assert (later.from_tier, later.moving_at_unix_s) == ("dram", 0.0)


async def test_a_hint_moves_bytes_and_the_load_finds_them(store: RunningStore) -> None:
    hint = await store.client.prepare(checkpoint_id=A, instance_id="i1")
    assert hint.found_in == "ssd" and hint.bytes_to_move > 5 * MIB and hint.moving_at_unix_s > 0
    assert (await store.load(A)).done
    assert (await store.client.prepare(checkpoint_id=A)).found_in == "dram"
    assert (await store.client.prepare(checkpoint_id="x@aaaa")).found_in == "absent"
    with pytest.raises(InvalidName):
        await store.client.prepare(checkpoint_id="../x@aaaa")


async def test_small_files_and_removal(store: RunningStore) -> None:
    reply = await store.client.get_files(A)
    assert set(reply.files) == {"config.json", "tokenizer.json"} and reply.manifest_digest
    await store.load(A)
    only_dram = await store.client.remove(A, only_dram=True)
    assert only_dram.freed_dram_bytes == 6 * MIB and only_dram.freed_ssd_bytes == 0
    whole = await store.client.remove(A)
    assert whole.freed_ssd_bytes > 5 * MIB and whole.freed_dram_bytes == 0
    with pytest.raises(UnknownCheckpoint):
        await store.client.get_files(A)


async def test_a_refused_source_is_answered_in_words(store: RunningStore) -> None:
    with pytest.raises(SourceUnsupported, match="scheme"):
        async for _ in store.client.download(checkpoint_id="x@aaaa", source="ftp://x/y", dtype="float32"):
            pass


async def test_after_a_kill_the_checkpoints_are_still_on_ssd(config: StoreConfig) -> None:
    async with running_store(config) as first:
        await first.load(A)
        reader, parts = await asyncio.to_thread(read, first, A)
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()
        # What a reader has mapped stays readable: the arena lives as long as anyone maps it.
        assert bytes(reader.arena.buffer(0, 4096)) == parts[0][:4096]
        reader.close()
    async with running_store(config) as second:
        names = {one.checkpoint_id for one in (await second.client.inventory()).checkpoints}
        assert names == {A, B, C}
        assert (await second.load(A)).from_tier == "ssd"
        other, parts_again = await asyncio.to_thread(read, second, A)
        assert parts_again == parts
        other.close()


async def test_a_second_store_on_the_same_cache_is_refused(store: RunningStore, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpu_worker.store", "--config-json", store.config.to_json()),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2 and b"SSD cache" in stderr
    assert (await store.load(A)).done


def test_the_store_imports_no_torch() -> None:
    import subprocess

    program = "import sys, gpu_worker.store.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

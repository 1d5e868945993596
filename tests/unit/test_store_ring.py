"""The ring: nothing is read over what the reader has not taken, and the room comes back however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firstlight.domain.errors import ChecksumMismatch, EngineGone, LargerThanPool
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.extents import Extent
from gpu_worker.store.pool import GRANULE_BYTES
from gpu_worker.store.store import Store
from tests.unit.store_fakes import HeldMemory, put

BIG = "big@aaaa"
CHUNK = GRANULE_BYTES
PARTS = [bytes([number]) * CHUNK for number in range(5)]


@pytest.fixture
async def memory() -> HeldMemory:
    """Room for two chunks, of a checkpoint of five."""
    return HeldMemory(2 * GRANULE_BYTES)


@pytest.fixture
async def store(tmp_path: Path, memory: HeldMemory) -> AsyncIterator[Store]:
    config = StoreConfig(
        host_id="h", state_dir=str(tmp_path), ssd_capacity_bytes=10**8, dram_capacity_bytes=memory.size_bytes
    )
    made = Store(config=config, memory=memory, ssd_read_bytes_per_s=1e9)
    put(made.cache, BIG, *PARTS)
    yield made
    await made.close()
    made.pool.check_integrity()


async def ends(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(5):
        await asyncio.shield(task)


async def test_chunks_go_through_in_order_and_wait_for_the_reader(store: Store, memory: HeldMemory) -> None:
    with pytest.raises(LargerThanPool):
        await store.loads.order(BIG).wait()
    stream = await store.loads.streams.begin(BIG)
    ring = stream.ring
    assert ring.slots == 2 and not store.may_evict(BIG)
    seen = b""
    for index in range(len(PARTS)):
        (await memory.transfer(index)).finish()
        assert await asyncio.to_thread(ring.board.wait_chunk, index, 5.0)
        if index >= 1:
            # Both slots are full: the third chunk is not begun before the first was taken.
            await asyncio.sleep(0)
            assert len(memory.transfers) == index + 1
            seen += bytes(memory.view(Extent(ring.extent.offset + (index - 1) % 2 * CHUNK, CHUNK)))
            ring.take(index)
    seen += bytes(memory.view(Extent(ring.extent.offset + (len(PARTS) - 1) % 2 * CHUNK, CHUNK)))
    ring.take(len(PARTS))
    await ends(stream.task)
    assert seen == b"".join(PARTS)
    assert store.pool.used_bytes == 0 and store.may_evict(BIG)


async def test_a_reader_that_goes_gives_the_ring_back(store: Store, memory: HeldMemory) -> None:
    stream = await store.loads.streams.begin(BIG)
    for index in range(2):
        (await memory.transfer(index)).finish()
    stream.ring.leave()
    with pytest.raises(EngineGone, match="went away"):
        await ends(stream.task)
    assert stream.ring.board.has_failed and store.pool.used_bytes == 0


async def test_bad_bytes_condemn_the_checkpoint(store: Store, memory: HeldMemory) -> None:
    stream = await store.loads.streams.begin(BIG)
    (await memory.transfer(0)).fail(ChecksumMismatch("chunk 0 differs"))
    with pytest.raises(ChecksumMismatch, match="quarantined"):
        await ends(stream.task)
    assert store.cache.quarantined() == (BIG,) and store.pool.used_bytes == 0


async def test_the_second_waits_for_its_turn(store: Store, memory: HeldMemory) -> None:
    first = await store.loads.streams.begin(BIG)
    second = asyncio.ensure_future(store.loads.streams.begin(BIG))
    for index in range(2):
        (await memory.transfer(index)).finish()
    assert not second.done()
    first.ring.leave()
    with pytest.raises(EngineGone):
        await ends(first.task)
    async with asyncio.timeout(5):
        stream = await second
    stream.ring.leave()
    for index in (2, 3):
        (await memory.transfer(index)).finish()
    with pytest.raises(EngineGone):
        await ends(stream.task)

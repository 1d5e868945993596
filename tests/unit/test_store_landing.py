"""Landings: bytes from elsewhere, joined like a load from SSD, resident only when they are whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firstlight.domain.errors import Conflict, PoolFull, SourceUnreachable, UnknownCheckpoint
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.pool import GRANULE_BYTES
from gpu_worker.store.store import Store
from tests.unit.store_fakes import HeldMemory, put

A, B = "a@aaaa", "b@aaaa"
BYTES = bytes(range(200)) * 100
CHUNKS = [8_000, 8_000, 4_000]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    memory = HeldMemory(2 * GRANULE_BYTES)
    config = StoreConfig(
        host_id="h", state_dir=str(tmp_path), ssd_capacity_bytes=10**6, dram_capacity_bytes=memory.size_bytes
    )
    made = Store(config=config, memory=memory, ssd_read_bytes_per_s=1e9)
    yield made
    await made.close()
    made.pool.check_integrity()


async def test_what_landed_is_resident_and_those_who_joined_are_told(store: Store, tmp_path: Path) -> None:
    landing = store.loads.land(A, [len(BYTES)], CHUNKS)
    joined = asyncio.ensure_future(store.loads.order(A).wait())
    following = asyncio.ensure_future(store.loads.arrival(A))
    landing.view(0)[:16_000] = BYTES[:16_000]
    landing.board.mark_done(0)
    landing.board.mark_done(1)
    with pytest.raises(Conflict, match="4000 bytes are missing"):
        landing.commit()
    assert store.loads.resident(A) is None and not following.done()

    landing.offer(tmp_path, manifest_digest="d")
    arrival = await following
    assert (arrival.directory, arrival.manifest_digest) == (tmp_path, "d")
    assert arrival.board.prefix_bytes == 16_000
    landing.view(0)[16_000:] = BYTES[16_000:]
    landing.board.mark_done(2)
    landing.commit()
    state = await joined
    assert state.is_done and state.from_tier == "remote" and state.bytes_done == len(BYTES)
    resident = store.loads.resident(A)
    assert resident is not None and resident.bytes_total == len(BYTES)
    (extent,) = store.pool.pin(A, "reader")
    assert bytes(store.memory.view(extent)) == BYTES


async def test_an_abandoned_landing_tells_why_and_gives_the_room_back(store: Store) -> None:
    landing = store.loads.land(A, [len(BYTES)], CHUNKS)
    joined = asyncio.ensure_future(store.loads.order(A).wait())
    following = asyncio.ensure_future(store.loads.arrival(A))
    await asyncio.sleep(0)
    landing.abandon(SourceUnreachable("the source went away"))
    landing.abandon(SourceUnreachable("said twice"))
    for waiting in (joined, following):
        with pytest.raises(SourceUnreachable, match="went away"):
            await waiting
    assert landing.board.has_failed and store.pool.used_bytes == 0 and not store.loads.is_running(A)
    with pytest.raises(UnknownCheckpoint):
        await store.loads.arrival(A)
    with pytest.raises(Conflict):
        landing.commit()


async def test_a_failed_load_keeps_its_room_until_who_reads_along_has_gone(store: Store) -> None:
    landing = store.loads.land(A, [GRANULE_BYTES], [GRANULE_BYTES])
    store.pool.pin(A, "reader", while_loading=True)
    with pytest.raises(UnknownCheckpoint):
        store.pool.pin(A, "other")
    landing.abandon(SourceUnreachable("away"))
    assert store.pool.doomed_bytes == GRANULE_BYTES
    store.pool.check_integrity()
    with pytest.raises(PoolFull):
        store.loads.land(B, [2 * GRANULE_BYTES], [2 * GRANULE_BYTES])
    store.pool.drop_reader("reader")
    assert store.pool.doomed_bytes == 0
    store.loads.land(B, [2 * GRANULE_BYTES], [2 * GRANULE_BYTES])


async def test_one_landing_for_a_checkpoint(store: Store) -> None:
    landing = store.loads.land(A, [1], [1])
    with pytest.raises(Conflict):
        store.loads.land(A, [1], [1])
    landing.view(0)[:] = b"x"
    landing.board.mark_done(0)
    landing.commit()
    await asyncio.sleep(0)
    with pytest.raises(Conflict):
        store.loads.land(A, [1], [1])


async def test_a_landing_does_not_wait_for_a_load_from_ssd(store: Store) -> None:
    put(store.cache, B, b"b" * 100)
    store.loads.order(B)
    assert isinstance(store.memory, HeldMemory)
    held = await store.memory.transfer(0)
    landing = store.loads.land(A, [1], [1])
    work = store.loads.order(A)
    landing.board.mark_done(0)
    landing.commit()
    assert (await work.wait()).is_done
    held.finish()
    await store.loads.order(B).wait()

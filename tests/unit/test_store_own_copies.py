"""A store that is doubted: what is wrong goes to nobody, what is right stays, and a disk is not kept busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from firstlight.domain.errors import UnknownCheckpoint
from gpu_worker.store.loads import Loads
from gpu_worker.store.native_memory import NativeMemory
from gpu_worker.store.own_copies import OwnCopies
from gpu_worker.store.pool import Pool
from gpu_worker.store.ssd_cache import SsdCache
from tests.integration.store_checkpoints import put_checkpoint
from tests.integration.store_damage import flip_a_byte

MIB = 2**20
NAME = "m@abcd1234"


@dataclass(frozen=True)
class Host:
    cache: SsdCache
    pool: Pool
    memory: NativeMemory
    own: OwnCopies

    async def looked(self) -> None:
        """Doubt it, and wait until it has been looked at."""
        self.own.doubt(NAME)
        await asyncio.gather(*self.own._running.values())

    def rot_in_dram(self) -> None:
        (extent,) = self.pool.pin(NAME, "rot")
        self.memory.view(extent)[5000] ^= 4
        self.pool.unpin(NAME, "rot")

    def rot_on_ssd(self) -> None:
        flip_a_byte(self.cache.get(NAME).directory / "partition-0.bin", at=5000)


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    put_checkpoint(tmp_path / "ssd", NAME, size_bytes=3 * MIB)
    memory = NativeMemory(size_bytes=16 * MIB, threads=1)
    pool = Pool(capacity_bytes=memory.size_bytes)
    cache = SsdCache(root=tmp_path / "ssd", capacity_bytes=100 * MIB)
    loads = Loads(cache=cache, pool=pool, memory=memory, ssd_read_bytes_per_s=1e9)
    own = OwnCopies(cache=cache, pool=pool, view=memory.view, condemn=loads.condemn)
    await loads.order(NAME).wait()
    yield Host(cache, pool, memory, own)
    await own.close()
    await loads.close()
    pool.check_integrity()
    cache.close()


async def test_what_is_right_stays_and_is_not_looked_at_twice(host: Host) -> None:
    await host.looked()
    assert host.pool.is_resident(NAME) and host.cache.find(NAME) is not None
    host.rot_on_ssd()
    await host.looked()
    assert host.cache.find(NAME) is not None, "found right a moment ago: a complaint costs nothing"


async def test_wrong_bytes_in_dram_go_to_nobody_and_those_who_read_them_keep_their_room(host: Host) -> None:
    host.rot_in_dram()
    host.pool.pin(NAME, "engine")
    await host.looked()
    assert host.cache.find(NAME) is not None and not host.pool.is_resident(NAME)
    with pytest.raises(UnknownCheckpoint):
        host.pool.pin(NAME, "another")
    assert host.pool.doomed_bytes >= 3 * MIB
    host.pool.check_integrity()
    host.pool.unpin(NAME, "engine")
    assert host.pool.used_bytes == 0


async def test_a_copy_on_ssd_is_quarantined_beside_a_right_one_in_dram(host: Host) -> None:
    host.rot_on_ssd()
    await host.looked()
    assert host.cache.find(NAME) is None and host.cache.quarantined() == (NAME,)
    assert host.pool.is_resident(NAME)


async def test_damaged_small_files_take_dram_with_them(host: Host) -> None:
    flip_a_byte(host.cache.get(NAME).directory / "tokenizer.json", at=0)
    await host.looked()
    assert host.cache.find(NAME) is None and not host.pool.is_resident(NAME)


async def test_what_is_not_here_cannot_be_doubted(host: Host) -> None:
    with pytest.raises(UnknownCheckpoint):
        host.own.doubt("other@abcd1234")

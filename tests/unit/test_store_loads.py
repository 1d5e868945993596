"""Loads: one at a time in order, joined by repeats, honest about the queue; and what readers are handed."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.domain.errors import Cancelled, ChecksumMismatch, PoolFull, ReadFailed, UnknownCheckpoint
from gpu_worker.store import loads
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.pool import GRANULE_BYTES
from gpu_worker.store.store import Store
from tests.unit.store_fakes import HeldMemory, put

A, B, C = "a@aaaa", "b@aaaa", "c@aaaa"


@pytest.fixture
async def memory() -> HeldMemory:
    return HeldMemory(2 * GRANULE_BYTES)


@pytest.fixture
async def store(tmp_path: Path, memory: HeldMemory) -> AsyncIterator[Store]:
    config = StoreConfig(
        host_id="h", state_dir=str(tmp_path), ssd_capacity_bytes=10**6, dram_capacity_bytes=memory.size_bytes
    )
    made = Store(config=config, memory=memory, ssd_read_bytes_per_s=1e9)
    for name in (A, B, C):
        put(made.cache, name, name.encode() * 100)
    made.start(socket_path=tmp_path / "s.sock", prefault=False)
    yield made
    await made.close()


async def load(store: Store, memory: HeldMemory, name: str) -> None:
    index = len(memory.transfers)
    work = store.loads.order(name)
    (await memory.transfer(index)).finish()
    await work.wait()


async def test_one_at_a_time_in_order_and_the_wait_is_measured(store: Store, memory: HeldMemory) -> None:
    first, second = store.loads.order(A), store.loads.order(B)
    held = await memory.transfer(0)
    assert len(memory.transfers) == 1 and store.loads.queued_bytes > 0
    await asyncio.sleep(0.05)  # time the second spends waiting, which is what is measured
    held.finish()
    (await memory.transfer(1)).finish()
    assert (await first.wait()).queue_s < 0.05
    state = await second.wait()
    assert state.queue_s >= 0.05 and state.is_done and state.from_tier == "ssd"
    assert store.loads.queued_bytes == 0


async def test_when_bytes_began_to_move_is_the_loaders_word(store: Store, memory: HeldMemory) -> None:
    load = store.loads.order(A)
    held = await memory.transfer(0)
    asked_to_begin = load.progress.moving_at_unix_s
    held.asked_at_unix_s = asked_to_begin + 0.25
    held.finish()
    assert (await load.wait()).moving_at_unix_s == asked_to_begin + 0.25


async def test_a_repeat_joins_and_a_watcher_that_leaves_stops_nothing(
    store: Store, memory: HeldMemory
) -> None:
    work = store.loads.order(A)
    assert store.loads.order(A) is work
    watcher = asyncio.ensure_future(anext(work.watch()))
    await watcher
    (await memory.transfer(0)).finish()
    await work.wait()
    assert len(memory.transfers) == 1
    resident = store.loads.resident(A)
    assert resident is not None and resident.from_tier == "dram" and resident.is_done


async def test_a_third_evicts_the_oldest_but_never_one_that_is_read(store: Store, memory: HeldMemory) -> None:
    await load(store, memory, A)
    await load(store, memory, B)
    store.pool.pin(A, "reader")
    await load(store, memory, C)
    assert store.pool.is_resident(A) and not store.pool.is_resident(B)
    store.pool.pin(C, "reader")
    with pytest.raises(PoolFull):
        await store.loads.order(B).wait()
    assert not store.may_evict(A)
    store.pool.drop_reader("reader")
    assert store.may_evict(A)


async def test_a_bad_checksum_quarantines_and_gives_the_room_back(store: Store, memory: HeldMemory) -> None:
    work = store.loads.order(A)
    (await memory.transfer(0)).fail(ChecksumMismatch("chunk 0 of partition-0.bin differs"))
    with pytest.raises(ChecksumMismatch, match="quarantined"):
        await work.wait()
    assert store.cache.find(A) is None and store.cache.quarantined() == (A,)
    assert store.pool.used_bytes == 0
    with pytest.raises(UnknownCheckpoint):
        store.loads.order(A)


async def test_a_device_error_does_not_condemn_the_checkpoint(store: Store, memory: HeldMemory) -> None:
    work = store.loads.order(A)
    (await memory.transfer(0)).fail(ReadFailed("input/output error"))
    with pytest.raises(ReadFailed):
        await work.wait()
    await load(store, memory, A)
    assert store.pool.is_resident(A)


class Reader:
    """A reader of the handover, as an engine is one."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        line, fds, _, _ = socket.recv_fds(self.socket, 4096, 1)
        self.hello: dict[str, Any] = json.loads(line)
        self.fd = fds[0]

    def ask(self, request: object) -> dict[str, Any]:
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self.socket.makefile().readline())
        return answer

    def close(self) -> None:
        self.socket.close()
        os.close(self.fd)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the state is not ours to signal
            await asyncio.sleep(0.005)


async def test_a_reader_maps_what_was_loaded_and_its_pins_end_with_it(
    store: Store, memory: HeldMemory, tmp_path: Path
) -> None:
    await load(store, memory, A)
    reader = await asyncio.to_thread(Reader, tmp_path / "s.sock")
    assert reader.hello == {"arena_bytes": memory.size_bytes, "kind": "memfd"}
    assert (tmp_path / "s.sock").stat().st_mode & 0o777 == 0o600
    answer = await asyncio.to_thread(reader.ask, {"pin": A})
    (extent,) = answer["extents"]
    with mmap.mmap(reader.fd, memory.size_bytes, prot=mmap.PROT_READ) as arena:
        assert arena[extent["offset"] :][: extent["size_bytes"]] == A.encode() * 100
    with pytest.raises(PermissionError):
        mmap.mmap(reader.fd, memory.size_bytes, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    assert (Path(answer["directory"]) / "manifest.json").exists()
    assert store.pool.pins(A) == 1

    assert await asyncio.to_thread(reader.ask, {"unpin": A}) == {"unpinned": A}
    assert store.pool.pins(A) == 0
    await asyncio.to_thread(reader.ask, {"pin": A})
    reader.close()
    await until(lambda: store.pool.pins(A) == 0)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"pin": B}, "checkpoint_not_found"),
        ({"unpin": A}, "checkpoint_not_found"),
        ({"x": 1}, "invalid_input"),
    ],
)
async def test_refusals_are_answered(store: Store, tmp_path: Path, request_: object, code: str) -> None:
    reader = await asyncio.to_thread(Reader, tmp_path / "s.sock")
    assert (await asyncio.to_thread(reader.ask, request_))["error"] == code
    reader.close()


async def test_nonsense_ends_only_its_own_connection(
    store: Store, memory: HeldMemory, tmp_path: Path
) -> None:
    await load(store, memory, A)
    bad, good = [await asyncio.to_thread(Reader, tmp_path / "s.sock") for _ in range(2)]
    await asyncio.to_thread(good.ask, {"pin": A})
    bad.socket.sendall(b"\xff\n" + b"x" * 200_000)
    assert await asyncio.to_thread(bad.socket.recv, 1) == b""
    assert store.pool.pins(A) == 1
    bad.close()
    good.close()


async def test_evicting_from_ssd_takes_the_unread_copy_in_dram_along(
    store: Store, memory: HeldMemory
) -> None:
    await load(store, memory, A)
    store.cache.remove(A)
    assert not store.pool.is_resident(A) and store.pool.used_bytes == 0


async def test_a_load_that_nobody_waits_for_ends_when_its_checkpoint_is_removed(
    store: Store, memory: HeldMemory
) -> None:
    store.loads.order(A)
    held = await memory.transfer(0)
    assert await store.loads.stop_unwanted(A)
    assert held.was_cancelled and not store.loads.is_running(A) and store.pool.used_bytes == 0

    waited_for = asyncio.ensure_future(store.loads.order(A).wait())
    await memory.transfer(1)
    assert not await store.loads.stop_unwanted(A), "somebody waits for it"
    memory.transfers[1].finish()
    assert (await waited_for).is_done


async def test_an_unwanted_load_yields_to_one_that_is_waited_for(
    store: Store, memory: HeldMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "UNWANTED_S", 0.05)
    hinted = store.loads.order(A)
    await memory.transfer(0)
    hinted_too = store.loads.order(B)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.shield(hinted.task)
    assert store.loads.is_running(A), "nobody waits for the other one either"
    waited_for = asyncio.ensure_future(hinted_too.wait())
    (await memory.transfer(1)).finish()
    assert (await waited_for).is_done and memory.transfers[0].was_cancelled
    with pytest.raises(Cancelled):
        hinted.task.result()


async def test_what_is_brought_ahead_is_held_while_others_want_the_device(
    store: Store, memory: HeldMemory
) -> None:
    ahead, ahead_too = store.loads.order(A, ahead=True), store.loads.order(B, ahead=True)
    first = await memory.transfer(0)
    assert store.loads.queued_bytes == 0, "a start would not wait for it"
    # A load for a start, which nobody watches yet, and whose room is the pool's last.
    wanted = store.loads.order(C)
    (await memory.transfer(1)).finish()
    assert memory.transfers[1].directory.name == C
    await wanted.wait()
    await until(lambda: not first.is_paused)
    assert not first.was_cancelled and store.loads.is_running(A) and not ahead.task.done()
    first.finish()
    # The last one evicts the one that was wanted longest ago, as any load does.
    (await memory.transfer(2)).finish()
    assert (await ahead.wait()).is_done and (await ahead_too.wait()).is_done


async def test_what_is_brought_ahead_goes_on_once_somebody_needs_it(store: Store, memory: HeldMemory) -> None:
    store.loads.order(A, ahead=True)
    first = await memory.transfer(0)
    joined = store.loads.order(A)
    store.loads.order(B)
    await asyncio.sleep(0.02)  # in which it would be held, were it still ahead of need
    assert not first.is_paused and len(memory.transfers) == 1
    first.finish()
    assert (await joined.wait()).is_done
    (await memory.transfer(1)).finish()

    # One that is held already, too.
    await store.loads.order(B).wait()
    held = store.loads.order(C, ahead=True)
    third = await memory.transfer(2)
    other = store.loads.order(A)
    fourth = await memory.transfer(3)
    assert third.is_paused
    assert store.loads.order(C) is held
    fourth.finish()
    await other.wait()
    third.finish()
    assert (await held.wait()).is_done and not third.is_paused


async def test_a_load_that_is_held_gives_up_its_room(store: Store, memory: HeldMemory) -> None:
    await load(store, memory, A)
    store.pool.pin(A, "reader")
    ahead = store.loads.order(B, ahead=True)
    held = await memory.transfer(1)
    wanted = store.loads.order(C)
    (await memory.transfer(2)).finish()
    assert (await wanted.wait()).is_done and held.was_cancelled
    with pytest.raises(asyncio.CancelledError):
        ahead.task.result()
    assert not store.loads.is_running(B) and store.pool.is_resident(C)

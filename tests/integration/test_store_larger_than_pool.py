"""A model larger than the DRAM pool starts all the same. Real processes, a pool of a quarter of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from firstlight.domain.errors import ChecksumMismatch, LargerThanPool
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from gpu_worker.engine.client import Nursery
from gpu_worker.engine.control import EngineConfig
from gpu_worker.store.config import StoreConfig
from tests.integration.engine_fixtures import (
    MIB,
    SMOLLM2,
    attach_command,
    chat_ids,
    collect,
    generate_request,
    put_in_cache,
    smollm2_checkpoint,
    tokens_of,
)
from tests.integration.store_damage import flip_a_byte
from tests.integration.test_store_process import RunningStore, running_store


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nursery(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nursery]:
    started = await Nursery.start(socket_path=tmp_path_factory.mktemp("nursery") / "engines.sock")
    try:
        yield started
    finally:
        await started.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunningStore]:
    put_in_cache(tmp_path / "ssd", smollm2_checkpoint(), SMOLLM2)
    config = StoreConfig(
        host_id="host-s",
        state_dir=str(tmp_path),
        ssd_capacity_bytes=2000 * MIB,
        dram_capacity_bytes=130 * MIB,
    )
    async with running_store(config) as running:
        yield running


async def until_empty(store: RunningStore) -> None:
    async with asyncio.timeout(10):
        while (await store.client.inventory()).dram_used_bytes:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def test_it_is_streamed_into_the_engine_and_answers_as_ever(
    nursery: Nursery, store: RunningStore, tmp_path: Path
) -> None:
    with pytest.raises(LargerThanPool):
        await store.load(SMOLLM2)
    request = generate_request(chat_ids("Name three colours."), max_tokens=8)
    engine = await nursery.spawn(EngineConfig(store_socket=str(store.config.socket_path)))
    attached = await engine.attach(attach_command())
    assert attached.stream_s > 0 and attached.parameter_bytes == 538_060_032
    await until_empty(store)
    async with Channels() as channels:
        streamed = tokens_of(await collect(InferenceClient(channels, attached.endpoint), request))
    assert await engine.stop() == 0

    wide = StoreConfig(
        host_id="host-w",
        state_dir=str(tmp_path / "wide"),
        ssd_dir=str(store.config.ssd_root),
        ssd_capacity_bytes=2000 * MIB,
        dram_capacity_bytes=600 * MIB,
    )
    store.process.terminate()
    await store.process.wait()
    async with running_store(wide) as pooled, Channels() as channels:
        engine = await nursery.spawn(EngineConfig(store_socket=str(pooled.config.socket_path)))
        attached = await engine.attach(attach_command())
        assert attached.stream_s == 0
        client = InferenceClient(channels, attached.endpoint)
        assert tokens_of(await collect(client, request)) == streamed
        await engine.stop()


async def test_a_flipped_byte_fails_the_attach(nursery: Nursery, store: RunningStore) -> None:
    flip_a_byte(store.config.ssd_root / "checkpoints" / SMOLLM2 / "partition-0.bin", at=300 * MIB)
    engine = await nursery.spawn(EngineConfig(store_socket=str(store.config.socket_path)))
    with pytest.raises(ChecksumMismatch):
        await engine.attach(attach_command())
    await engine.wait_exit()
    assert (await store.row(SMOLLM2)).quarantined
    await until_empty(store)


async def test_an_engine_that_is_killed_gives_the_ring_back(nursery: Nursery, store: RunningStore) -> None:
    for _ in range(2):
        engine = await nursery.spawn(EngineConfig(store_socket=str(store.config.socket_path)))
        await engine.wait_spare()
        attaching = asyncio.ensure_future(engine.attach(attach_command()))
        async with asyncio.timeout(20):
            while not (await store.client.inventory()).dram_used_bytes:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.001)
        os.kill(engine.pid, signal.SIGKILL)
        await asyncio.gather(attaching, return_exceptions=True)
        await until_empty(store)

"""Death and damage in the midst of a load: a correct start or a plain error, and no room lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from firstlight.domain.errors import ChecksumMismatch, EngineGone
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from gpu_worker.engine.client import EngineHandle, Nursery
from gpu_worker.engine.control import Attached, EngineConfig, PrepareCommand
from gpu_worker.engine.process import EXIT_WEIGHTS_LOST
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
from tests.integration.store_reader import Reader
from tests.integration.test_store_process import RunningStore, running_store

# A load of half a gigabyte may be over before it was stopped: then it is tried again.
TRIES = 8


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nursery(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nursery]:
    started = await Nursery.start(socket_path=tmp_path_factory.mktemp("nursery") / "engines.sock")
    try:
        yield started
    finally:
        await started.close()


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    put_in_cache(tmp_path / "ssd", smollm2_checkpoint(), SMOLLM2)
    return StoreConfig(
        host_id="host-f",
        state_dir=str(tmp_path),
        ssd_capacity_bytes=2000 * MIB,
        dram_capacity_bytes=600 * MIB,
    )


@asynccontextmanager
async def prepared(nursery: Nursery, store: RunningStore) -> AsyncIterator[EngineHandle]:
    """A spare engine that has its skeleton, so that attaching it takes milliseconds."""
    engine = await nursery.spawn(EngineConfig(store_socket=str(store.config.socket_path)))
    await engine.wait_spare()
    directory = store.config.ssd_root / "checkpoints" / SMOLLM2
    await engine.prepare(PrepareCommand(checkpoint_id=SMOLLM2, checkpoint_dir=str(directory)))
    try:
        yield engine
    finally:
        engine.kill()
        await engine.wait_exit()


async def attach_in_the_midst(nursery: Nursery, store: RunningStore) -> tuple[EngineHandle, Attached]:
    """An engine bound to a load whose store then stands still."""
    watching = await asyncio.to_thread(Reader, str(store.config.socket_path))
    try:
        for _ in range(TRIES):
            engine = await nursery.spawn(EngineConfig(store_socket=str(store.config.socket_path)))
            await engine.wait_spare()
            directory = store.config.ssd_root / "checkpoints" / SMOLLM2
            await engine.prepare(PrepareCommand(checkpoint_id=SMOLLM2, checkpoint_dir=str(directory)))
            attaching = asyncio.ensure_future(engine.attach(attach_command()))
            _, board = await asyncio.to_thread(watching.pin_early, SMOLLM2)
            attached = await attaching
            os.kill(store.process.pid, signal.SIGSTOP)
            if board is not None and not board.is_ended:
                return engine, attached
            os.kill(store.process.pid, signal.SIGCONT)
            await engine.stop()
            await asyncio.to_thread(watching.ask, unpin=SMOLLM2)
            await store.until_pins(SMOLLM2, 0)
            await store.client.remove(SMOLLM2, only_dram=True)
    finally:
        watching.close()
    raise AssertionError("every load was over before it could be stopped")


async def test_the_store_dies_in_the_midst_of_a_load(nursery: Nursery, config: StoreConfig) -> None:
    prompt = chat_ids("Name a colour.")
    async with Channels() as channels:
        async with running_store(config) as store:
            engine, attached = await attach_in_the_midst(nursery, store)
            client = InferenceClient(channels, attached.endpoint)
            answer = asyncio.ensure_future(collect(client, generate_request(prompt, max_tokens=4)))
            done, _ = await asyncio.wait({answer}, timeout=1.0)
            assert not done, "it answered before its weights were there"
            store.process.kill()
            await store.process.wait()
            with pytest.raises(EngineGone, match="weights"):
                await answer
            assert await asyncio.wait_for(engine.wait_exit(), 10) == EXIT_WEIGHTS_LOST

        async with running_store(config) as again, prepared(nursery, again) as engine:
            attached = await engine.attach(attach_command())
            client = InferenceClient(channels, attached.endpoint)
            early = tokens_of(await collect(client, generate_request(prompt, max_tokens=4)))
            await again.load(SMOLLM2)
            assert early == tokens_of(await collect(client, generate_request(prompt, max_tokens=4)))


async def test_a_store_that_only_stood_still_ends_in_the_very_answer(
    nursery: Nursery, config: StoreConfig
) -> None:
    prompt = chat_ids("Name a colour.")
    async with Channels() as channels, running_store(config) as store:
        engine, attached = await attach_in_the_midst(nursery, store)
        client = InferenceClient(channels, attached.endpoint)
        waiting = asyncio.ensure_future(collect(client, generate_request(prompt, max_tokens=4)))
        await asyncio.wait({waiting}, timeout=0.5)
        os.kill(store.process.pid, signal.SIGCONT)
        early = tokens_of(await waiting)
        await store.load(SMOLLM2)
        assert early == tokens_of(await collect(client, generate_request(prompt, max_tokens=4)))
        await engine.stop()


async def test_a_flipped_byte_reaches_nobody(nursery: Nursery, config: StoreConfig) -> None:
    """In the last chunk: the engine is bound, and has computed with the others, before it is read."""
    path = config.ssd_root / "checkpoints" / SMOLLM2 / "partition-0.bin"
    flip_a_byte(path, at=-5000)
    async with Channels() as channels, running_store(config) as store, prepared(nursery, store) as engine:
        try:
            attached = await engine.attach(attach_command())
            client = InferenceClient(channels, attached.endpoint)
            with pytest.raises(EngineGone):
                await collect(client, generate_request(chat_ids("Name a colour."), max_tokens=4))
            assert await asyncio.wait_for(engine.wait_exit(), 10) == EXIT_WEIGHTS_LOST
        except ChecksumMismatch:
            pass  # the load had failed before the engine asked
        row = await store.row(SMOLLM2)
        assert row.quarantined and not row.in_dram
        await until_dram_is_empty(store)


async def test_who_reads_along_and_is_killed_leaves_nothing_behind(
    nursery: Nursery, config: StoreConfig
) -> None:
    async with running_store(config) as store:
        engine, _ = await attach_in_the_midst(nursery, store)
        os.kill(engine.pid, signal.SIGKILL)
        await engine.wait_exit()
        os.kill(store.process.pid, signal.SIGCONT)
        await store.until_pins(SMOLLM2, 0)
        assert (await store.load(SMOLLM2)).done
        await store.client.remove(SMOLLM2, only_dram=True)
        await until_dram_is_empty(store)


async def until_dram_is_empty(store: RunningStore) -> None:
    async with asyncio.timeout(10):
        while (await store.client.inventory()).dram_used_bytes:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)

"""Engine processes as a supervisor sees them: forked, prepared, bound, fenced, ended, killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from firstlight.domain.errors import EngineBusy, EngineGone, InstanceDraining, StaleEpoch, UnknownCheckpoint
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from gpu_worker.engine.binding import dtype_of, open_at, tensors_in_arena
from gpu_worker.engine.client import EngineHandle, Nursery
from gpu_worker.engine.control import EngineConfig, PrepareCommand
from gpu_worker.engine.process import EXIT_FAILED, EXIT_STORE_GONE
from gpu_worker.engine.skeleton import build_skeleton
from gpu_worker.engine.store_link import StoreLink
from tests.integration.engine_fixtures import (
    SMOLLM2,
    attach_command,
    chat_ids,
    collect,
    generate_request,
    smollm2_store,
    tokens_of,
)
from tests.integration.store_processes import descendants, is_alive, until
from tests.integration.test_store_process import RunningStore

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from gpu_worker.engine.binding import dtype_of, open_at, tensors_in_arena
from gpu_worker.engine.client import Nursery
from gpu_worker.engine.control import EngineConfig

async def main() -> None:
    nursery = await Nursery.start(socket_path=Path(sys.argv[1]))
    engine = await nursery.spawn(EngineConfig(store_socket=sys.argv[2]))
    await engine.wait_spare()
    print(nursery.zygote_pid, engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStore]:
    async with smollm2_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nursery(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nursery]:
    started = await Nursery.start(socket_path=tmp_path_factory.mktemp("nursery") / "engines.sock")
    try:
        yield started
    finally:
        await started.close()


@pytest.fixture
def config(store: RunningStore) -> EngineConfig:
    return EngineConfig(store_socket=str(store.config.socket_path))


@pytest_asyncio.fixture(loop_scope="session")
async def spare(nursery: Nursery, config: EngineConfig) -> AsyncIterator[EngineHandle]:
    engine = await nursery.spawn(config)
    await engine.wait_spare()
    yield engine
    await engine.stop()


async def test_a_prepared_engine_attaches_without_building(spare: EngineHandle, store: RunningStore) -> None:
    directory = store.config.ssd_root / "checkpoints" / SMOLLM2
    command = PrepareCommand(checkpoint_id=SMOLLM2, checkpoint_dir=str(directory))
    assert await spare.prepare(command) > 0
    assert await spare.prepare(command) == 0
    attached = await spare.attach(attach_command())
    assert attached.skeleton_s == 0
    assert attached.context_length == 8192
    assert attached.parameter_bytes == 538_060_032
    assert (await store.row(SMOLLM2)).pins == 1
    assert await spare.stop() == 0
    await store.until_pins(SMOLLM2, 0)


async def test_attach_is_fenced_and_idempotent(spare: EngineHandle) -> None:
    first, joined = await asyncio.gather(
        spare.attach(attach_command(context_length=512)), spare.attach(attach_command(context_length=512))
    )
    assert first == joined == await spare.attach(attach_command(context_length=512))
    assert first.context_length == 512
    with pytest.raises(StaleEpoch):
        await spare.attach(attach_command(instance_id="older", epoch=6))
    with pytest.raises(EngineBusy):
        await spare.attach(attach_command(instance_id="newer", epoch=8))


async def test_a_refusal_by_the_store_leaves_it_spare(spare: EngineHandle) -> None:
    with pytest.raises(UnknownCheckpoint):
        await spare.attach(attach_command(checkpoint_id="absent@aaaa"))
    assert (await spare.attach(attach_command())).parameter_bytes > 0


async def test_generate_needs_an_attach(spare: EngineHandle) -> None:
    async with Channels() as channels:
        client = InferenceClient(channels, await spare.wait_spare())
        assert (await client.status()).state == "spare"
        with pytest.raises(EngineGone):
            await collect(client, generate_request([1], max_tokens=1))


async def test_weights_are_the_stores_own_memory(store: RunningStore) -> None:
    link = await StoreLink.connect(str(store.config.socket_path))
    try:
        pinned = await link.pin(SMOLLM2)
        checkpoint = open_at(pinned.directory)
        skeleton = build_skeleton(pinned.directory, dtype=dtype_of(checkpoint))
        skeleton.bind(tensors_in_arena(checkpoint, pinned, link.view))
        ((offset, size_bytes),) = pinned.extents
        buffer = link.view.buffer(offset, size_bytes)
        begin = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
        for parameter in skeleton.model.parameters():
            assert begin <= parameter.data_ptr() <= begin + size_bytes - parameter.nbytes
        assert skeleton.model.lm_head.weight is skeleton.model.model.embed_tokens.weight
    finally:
        await link.close()
    await store.until_pins(SMOLLM2, 0)


async def test_draining_refuses_ends_and_leaves(spare: EngineHandle) -> None:
    attached = await spare.attach(attach_command())
    async with Channels() as channels:
        client = InferenceClient(channels, attached.endpoint)
        request = generate_request(chat_ids("Count to a million."), max_tokens=4000, ignore_eos=True)
        running = asyncio.ensure_future(collect(client, request))
        async with asyncio.timeout(20):
            while not (await client.status()).running:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        draining = asyncio.ensure_future(client.drain(epoch=7, timeout_s=1.0))
        async with asyncio.timeout(20):
            while (await client.status()).state != "draining":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        with pytest.raises(InstanceDraining):
            await collect(client, generate_request([1], max_tokens=1))
        assert (await draining).aborted == 1
        with pytest.raises(InstanceDraining):
            await running
    assert await spare.stop() == 0


async def test_a_killed_engine_is_noticed(spare: EngineHandle, store: RunningStore) -> None:
    attached = await spare.attach(attach_command())
    async with Channels() as channels:
        client = InferenceClient(channels, attached.endpoint)
        request = generate_request(chat_ids("Count to a million."), max_tokens=4000, ignore_eos=True)
        stream = client.generate(request)
        await anext(stream)
        os.kill(spare.pid, signal.SIGKILL)
        with pytest.raises(EngineGone):
            async for _ in stream:
                pass
    assert await asyncio.wait_for(spare.wait_exit(), 10) == -signal.SIGKILL
    with pytest.raises(EngineGone):
        await spare.attach(attach_command())
    await store.until_pins(SMOLLM2, 0)


async def test_engines_outlive_their_zygote(tmp_path: Path, config: EngineConfig) -> None:
    nursery = await Nursery.start(socket_path=tmp_path / "e.sock")
    try:
        engine = await nursery.spawn(config)
        attached = await engine.attach(attach_command())
        os.kill(nursery.zygote_pid, signal.SIGKILL)
        await nursery.wait_zygote_exit()
        async with Channels() as channels:
            client = InferenceClient(channels, attached.endpoint)
            assert tokens_of(await collect(client, generate_request([1, 2, 3], max_tokens=2)))
        with pytest.raises(EngineGone):
            await nursery.spawn(config)
        assert await engine.stop() is None  # nobody was left to tell its status
        assert not is_alive(engine.pid)
    finally:
        await nursery.close()


async def test_all_die_with_the_supervisor(tmp_path: Path, config: EngineConfig) -> None:
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", SUPERVISOR, str(tmp_path / "e.sock"), config.store_socket),
        stdout=asyncio.subprocess.PIPE,
    )
    assert supervisor.stdout is not None
    pids = [int(word) for word in (await supervisor.stdout.readline()).split()]
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    supervisor.kill()
    await supervisor.wait()
    await until(lambda: not any(is_alive(pid) for pid in pids), within_s=10, what="zygote and engine ended")


async def test_when_the_store_goes_spares_go_and_bound_ones_stay(tmp_path: Path, nursery: Nursery) -> None:
    async with smollm2_store(tmp_path) as store:
        config = EngineConfig(store_socket=str(store.config.socket_path))
        spare, bound = [await nursery.spawn(config) for _ in range(2)]
        await spare.wait_spare()
        attached = await bound.attach(attach_command())
        store.process.kill()
        await store.process.wait()
        assert await asyncio.wait_for(spare.wait_exit(), 10) == EXIT_STORE_GONE
        async with Channels() as channels:
            client = InferenceClient(channels, attached.endpoint)
            assert tokens_of(await collect(client, generate_request([1, 2, 3], max_tokens=2)))
        assert await bound.stop() == 0


async def test_an_engine_without_a_store_ends(nursery: Nursery, tmp_path: Path) -> None:
    engine = await nursery.spawn(EngineConfig(store_socket=str(tmp_path / "nobody.sock")))
    with pytest.raises(EngineGone):
        await asyncio.wait_for(engine.wait_spare(), 20)
    assert await engine.wait_exit() == EXIT_FAILED


async def test_a_fork_nobody_waits_for_leaves_nothing(nursery: Nursery, config: EngineConfig) -> None:
    await nursery.wait_ready()
    before = descendants(nursery.zygote_pid)
    spawning = asyncio.ensure_future(nursery.spawn(config))
    await asyncio.wait({spawning}, timeout=0.001)
    spawning.cancel()
    await asyncio.wait({spawning})
    later = await nursery.spawn(config)  # the zygote answers in order: the first fork is done by now
    await later.stop()
    await until(
        lambda: descendants(nursery.zygote_pid) <= before, within_s=10, what="the unwanted engine ended"
    )

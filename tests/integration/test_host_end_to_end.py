"""A whole host with real engines: from a published model to tokens, through deaths, to a clean stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from firstlight.domain.errors import EngineGone, InvalidInput, StaleEpoch
from firstlight.launcher.readiness import engines_are_warm
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, InferenceClient, StoreClient
from firstlight.rpc.engine_pb2 import GenerateRequest, Sampling
from firstlight.rpc.host_pb2 import AttachReply, EngineProcess
from gpu_worker.host.config import ChildConfig, HostConfig
from tests.integration.store_processes import command_line, descendants, is_alive, until
from tests.integration.tiny_models import write_tiny_model

MIB = 2**20
NAME = "tiny@aaaa1111"
CHILD = "import sys, time; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + chr(10)); time.sleep(600)"


@dataclass(frozen=True)
class RunningHost:
    config: HostConfig
    process: asyncio.subprocess.Process
    channels: Channels
    host: HostClient
    store: StoreClient

    async def attach(self, instance: str, epoch: int, gpu: int = 0) -> AttachReply:
        return await self.host.attach(
            instance_id=instance,
            epoch=epoch,
            model="tiny",
            checkpoint_id=NAME,
            gpu_indices=[gpu],
            max_concurrency=2,
        )

    async def bring(self) -> None:
        async for _ in self.store.load(NAME):
            pass

    async def engines(self) -> list[EngineProcess]:
        return list((await self.host.list_engines()).engines)

    async def engine(self, instance: str) -> EngineProcess:
        return next(one for one in await self.engines() if one.instance_id == instance)

    async def until_spare(self, *, other_than: int = 0) -> EngineProcess:
        async with asyncio.timeout(120):
            while True:
                ready = [
                    one for one in await self.engines() if one.state == "spare" and one.pid != other_than
                ]
                if ready:
                    return ready[0]
                await asyncio.sleep(0.05)

    def child_pid(self, marker: str) -> int:
        (pid,) = [pid for pid in descendants(self.process.pid) if marker in command_line(pid)]
        return pid

    async def tokens(self, reply: AttachReply, epoch: int, number: int = 8) -> list[int]:
        request = GenerateRequest(
            request_id=f"r{epoch}",
            epoch=epoch,
            prompt_token_ids=[5, 6, 7],
            max_tokens=number,
            ignore_eos=True,
            sampling=Sampling(temperature=0.0),
        )
        chunks = InferenceClient(self.channels, reply.endpoint).generate(request)
        return [chunk.token_id async for chunk in chunks if chunk.has_token]


@asynccontextmanager
async def running_host(config: HostConfig) -> AsyncIterator[RunningHost]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gpu_worker.host", "--config-json", config.to_json()
    )
    try:
        await until(config.address_file.exists, within_s=60, what="the host serves")
        said = json.loads(config.address_file.read_text())
        assert said["pid"] == process.pid
        async with Channels() as channels:
            yield RunningHost(
                config,
                process,
                channels,
                HostClient(channels, said["host_address"]),
                StoreClient(channels, said["store_address"]),
            )
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(20):
                await process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory, model: Path) -> AsyncIterator[RunningHost]:
    """One host for the module: its zygote takes seconds to import. It holds the model on SSD."""
    state_dir = tmp_path_factory.mktemp("host")
    note = str(state_dir / "child.txt")
    child = ChildConfig(
        name="agent", argv=(sys.executable, "-S", "-c", CHILD, note, "{host_address}", "{store_address}")
    )
    config = HostConfig(
        host_id="host-t",
        state_dir=str(state_dir),
        ssd_capacity_bytes=400 * MIB,
        dram_capacity_bytes=64 * MIB,
        gpu_count=2,
        children=(child,),
    )
    async with running_host(config) as running:
        async for _ in running.store.download(checkpoint_id=NAME, source=model.as_uri(), dtype="float32"):
            pass
        await running.until_spare()
        yield running


@pytest.fixture(autouse=True)
async def stopped(host: RunningHost) -> AsyncIterator[None]:
    """Each test leaves the host without bound engines."""
    yield
    if host.process.returncode is not None:
        return
    for one in await host.engines():
        if one.instance_id:
            await host.host.stop(
                instance_id=one.instance_id, epoch=one.epoch, drain_timeout_s=0, reason="test ended"
            )


async def test_from_ssd_to_tokens(host: RunningHost) -> None:
    await host.bring()
    reply = await host.attach("i1", 11)
    assert reply.context_length == 128 and reply.parameter_bytes > 0
    first = await host.tokens(reply, 11)
    assert len(first) == 8
    repeat = await host.attach("i1", 11)
    assert repeat.age_s > reply.age_s
    repeat.age_s = reply.age_s
    assert repeat == reply
    inventory = await host.store.inventory()
    assert [one.pins for one in inventory.checkpoints] == [1]
    second = await host.attach("i2", 12, 1)
    assert await host.tokens(second, 12) == first
    row = await host.engine("i1")
    assert (row.state, row.epoch, row.endpoint) == ("ready", 11, reply.endpoint)
    stopped = await host.host.stop(instance_id="i1", epoch=11, drain_timeout_s=1, reason="test")
    assert stopped.was_running
    again = await host.host.stop(instance_id="i1", epoch=11, drain_timeout_s=1, reason="test")
    assert not again.was_running


async def test_who_prepares_says_where_it_is_going_to_serve(host: RunningHost) -> None:
    spare = await host.until_spare()
    told = await host.host.prepare_engine(checkpoint_id=NAME)
    assert told.accepted and list(told.endpoints) == [spare.endpoint]
    assert (await host.attach("i1", 15)).endpoint == spare.endpoint
    nobody = await host.host.prepare_engine(checkpoint_id="absent@aaaa")
    assert not nobody.accepted and not nobody.endpoints


async def test_a_host_lets_its_spares_go_when_it_is_told(host: RunningHost) -> None:
    await host.until_spare()
    await host.host.keep_warm(architecture_s={NAME: 0.0}, spare_s=0.0, good_for_s=600)
    async with asyncio.timeout(30):
        while any(one.state in ("spare", "starting") for one in await host.engines()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await host.host.list_engines()).lets_spares_go
    assert await engines_are_warm(address_file=host.config.address_file), "there is nothing to wait for"
    await host.bring()
    assert len(await host.tokens(await host.attach("i1", 16), 16)) == 8
    await host.host.keep_warm(architecture_s={}, spare_s=None, good_for_s=600)
    await host.until_spare()
    assert not (await host.host.list_engines()).lets_spares_go
    with pytest.raises(InvalidInput):
        await host.host.keep_warm(architecture_s={NAME: -1.0}, spare_s=None, good_for_s=600)


async def test_attach_brings_what_it_needs_from_ssd(host: RunningHost) -> None:
    await host.store.remove(NAME, only_dram=True) if await in_dram(host) else None
    await host.attach("i1", 21)
    assert await in_dram(host)
    with pytest.raises(StaleEpoch):
        await host.attach("i0", 20)


async def in_dram(host: RunningHost) -> bool:
    return any(one.in_dram for one in (await host.store.inventory()).checkpoints)


async def test_a_killed_engine_is_reported_once_and_its_pin_is_free(host: RunningHost) -> None:
    await host.bring()
    reply = await host.attach("i1", 31)
    waiting = asyncio.ensure_future(
        InferenceClient(host.channels, reply.endpoint).wait_idle(epoch=31, idle_s=60)
    )
    os.kill((await host.engine("i1")).pid, signal.SIGKILL)
    with pytest.raises(EngineGone):
        await waiting
    async with asyncio.timeout(10):
        while (row := await host.engine("i1")).state != "exited":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert row.epoch == 31 and row.gpu_indices == [0]
    assert not [one for one in await host.engines() if one.instance_id]
    async with asyncio.timeout(10):
        while any(one.pins for one in (await host.store.inventory()).checkpoints):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_killed_store_comes_back_while_a_bound_engine_serves_on(host: RunningHost) -> None:
    await host.bring()
    reply = await host.attach("i1", 41)
    expected = await host.tokens(reply, 41)
    spare = await host.until_spare()
    store_pid = host.child_pid("gpu_worker.store")
    os.kill(store_pid, signal.SIGKILL)
    assert await host.tokens(reply, 41) == expected
    async with asyncio.timeout(30):
        while True:
            try:
                inventory = await host.store.inventory()
                break
            except EngineGone:
                await asyncio.sleep(0.05)
    (row,) = inventory.checkpoints
    assert row.on_ssd and not row.in_dram and host.child_pid("gpu_worker.store") != store_pid
    await host.until_spare(other_than=spare.pid)
    assert not is_alive(spare.pid)
    await host.bring()
    second = await host.attach("i2", 42, 1)
    assert await host.tokens(second, 42) == expected
    assert await host.tokens(reply, 41) == expected


async def test_a_killed_zygote_is_replaced(host: RunningHost) -> None:
    await host.bring()
    reply = await host.attach("i1", 51)
    zygote = min(pid for pid in descendants(host.process.pid) if "engine.zygote" in command_line(pid))
    os.kill(zygote, signal.SIGKILL)
    assert len(await host.tokens(reply, 51)) == 8
    second = await host.attach("i2", 52, 1)
    assert len(await host.tokens(second, 52)) == 8


async def test_children_are_told_the_addresses_and_restarted(host: RunningHost) -> None:
    note = Path(host.config.state_dir) / "child.txt"
    said = json.loads(host.config.address_file.read_text())
    lines = note.read_text().splitlines()
    assert lines[-1] == f"{said['host_address']} {said['store_address']}"
    os.kill(host.child_pid("child.txt"), signal.SIGKILL)
    await until(
        lambda: len(note.read_text().splitlines()) > len(lines), within_s=15, what="the child is back"
    )


async def test_a_stop_leaves_no_process(host: RunningHost) -> None:
    await host.bring()
    await host.attach("i1", 61)
    await host.until_spare()
    family = descendants(host.process.pid)
    assert len(family) >= 5
    host.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await host.process.wait() == 0
    assert not [pid for pid in family if is_alive(pid)]
    assert not host.config.address_file.exists()


async def test_a_killed_supervisor_leaves_no_process_either(tmp_path: Path) -> None:
    config = HostConfig(
        host_id="host-k",
        state_dir=str(tmp_path),
        ssd_capacity_bytes=40 * MIB,
        dram_capacity_bytes=8 * MIB,
        children=(ChildConfig(name="c", argv=(sys.executable, "-S", "-c", CHILD, str(tmp_path / "c"))),),
    )
    async with running_host(config) as running:
        await running.until_spare()
        family = descendants(running.process.pid)
        running.process.kill()
        await running.process.wait()
        await until(
            lambda: not [pid for pid in family if is_alive(pid)], within_s=10, what="the family is gone"
        )

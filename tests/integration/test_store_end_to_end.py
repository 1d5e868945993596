"""A real model from a real S3 server to DRAM through one store, with the real converter."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from firstlight.domain.errors import (
    CheckpointMismatch,
    ChecksumMismatch,
    DiskFull,
    EngineGone,
    SourceUnsupported,
)
from firstlight.rpc.store_pb2 import DownloadProgress
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.sources import describe_source
from tests.integration import store_s3
from tests.integration.store_processes import descendants
from tests.integration.store_proxy import slow_proxy
from tests.integration.store_reader import Reader
from tests.integration.test_forked_planner import kept_zygote
from tests.integration.test_store_process import RunningStore, running_store

MIB = 2**20
NAME = "tiny@aaaa1111"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of about 70 MB in float32, mostly embedding: five chunks to fetch."""
    directory = tmp_path_factory.mktemp("model") / "llama"
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=16_000,
        hidden_size=512,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[str]:
    with store_s3.s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        client = store_s3.bucket(endpoint)
        for path in model.iterdir():
            client.put(f"llama/{path.name}", path.read_bytes())
        yield endpoint


@pytest.fixture(scope="module")
async def planners(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """Where the stores have planners of conversions forked, as on a host: by a zygote of engines."""
    folder = tmp_path_factory.mktemp("zygote") / "host"
    async with kept_zygote(folder):
        yield folder / "planners.sock"


@pytest.fixture
def config(tmp_path: Path, planners: Path) -> StoreConfig:
    made = StoreConfig(
        host_id="host-t",
        state_dir=str(tmp_path / "state"),
        ssd_capacity_bytes=400 * MIB,
        dram_capacity_bytes=100 * MIB,
        fetch_parallelism=2,
    )
    made.make_socket_dir()
    made.planner_socket_path.symlink_to(planners)
    return made


@pytest.fixture
async def store(config: StoreConfig) -> AsyncIterator[RunningStore]:
    async with running_store(config) as running:
        yield running


async def download(
    store: RunningStore, source: str, *, name: str = NAME, digest: str = ""
) -> list[DownloadProgress]:
    steps = store.client.download(checkpoint_id=name, source=source, dtype="float32", expected_digest=digest)
    return [step async for step in steps]


def arena_bytes(store: RunningStore, name: str) -> bytes:
    reader = Reader(str(store.config.socket_path))
    (part,) = reader.bytes_of(name)
    reader.close()
    return part


async def test_from_a_folder_to_dram_and_every_tensor_is_there(store: RunningStore, model: Path) -> None:
    first, again = await asyncio.gather(download(store, model.as_uri()), download(store, model.as_uri()))
    last = first[-1]
    assert last.phase == "done" and last.manifest_digest == again[-1].manifest_digest
    assert last.source_bytes == (await describe_source(model.as_uri())).source_bytes
    assert (await download(store, model.as_uri()))[-1].was_present
    await store.load(NAME)
    content = await asyncio.to_thread(arena_bytes, store, NAME)
    state = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
        assert state[name].numpy().tobytes() in content
    files = (await store.client.get_files(NAME)).files
    assert "config.json" in files


async def test_from_s3_and_from_a_folder_are_the_same_bytes(
    config: StoreConfig, model: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in store_s3.environment(s3).items():
        monkeypatch.setenv(key, value)
    async with running_store(config) as store:
        phases = [step.phase for step in await download(store, "s3://models/llama")]
        assert phases[0] == "fetch" and phases[-1] == "done"
        root = config.ssd_root
        assert not list((root / "staging").iterdir()) and not list((root / "writing").iterdir())
        fetched = (root / "checkpoints" / NAME / "partition-0.bin").read_bytes()
        digest = (await store.row(NAME)).manifest_digest
        await store.client.remove(NAME)
        # As another host would: the same id from elsewhere has to give the digest that was recorded.
        await download(store, model.as_uri(), digest=digest)
        assert (root / "checkpoints" / NAME / "partition-0.bin").read_bytes() == fetched


async def test_a_killed_download_resumes_at_a_chunk(
    config: StoreConfig, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slow until it is planned, so that not all has come by then.
    async with slow_proxy(s3, bytes_per_s=1 * MIB) as proxy:
        for key, value in store_s3.environment(proxy.endpoint).items():
            monkeypatch.setenv(key, value)
        async with running_store(config) as store:
            with pytest.raises(EngineGone):
                async for step in store.client.download(
                    checkpoint_id=NAME, source="s3://models/llama", dtype="float32", into_dram=True
                ):
                    if step.remote_bytes:
                        proxy.bytes_per_s = 20 * MIB
                    if step.ssd_bytes >= 32 * MIB and store.process.returncode is None:
                        store.process.send_signal(signal.SIGKILL)
                        await store.process.wait()
        before, proxy.bytes_passed, proxy.bytes_per_s = proxy.bytes_passed, 0, 1e9
        async with running_store(config) as store:
            hint = await store.client.prepare(
                checkpoint_id=NAME, source="s3://models/llama", dtype="float32", instance_id="i1"
            )
            assert hint.found_in == "absent" and hint.moving_at_unix_s > 0
            last = (await download(store, "s3://models/llama"))[-1]
            assert last.phase == "done" and last.dram_bytes == last.ssd_bytes > 0
            assert before > 32 * MIB and proxy.bytes_passed <= last.source_bytes - 32 * MIB + 2 * MIB
            assert (await store.load(NAME)).done


async def test_a_client_that_leaves_does_not_stop_the_download(store: RunningStore, model: Path) -> None:
    async with aclosing(
        store.client.download(checkpoint_id=NAME, source=model.as_uri(), dtype="float32")  # type: ignore[type-var]
    ) as steps:
        await anext(steps)
    async with asyncio.timeout(60):
        while not (await store.row(NAME)).on_ssd:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)


async def test_other_bytes_than_the_first_conversion_are_refused(store: RunningStore, model: Path) -> None:
    with pytest.raises(CheckpointMismatch):
        await download(store, model.as_uri(), digest="sha256:" + "0" * 64)
    assert not (await store.row(NAME)).on_ssd


async def test_what_went_bad_is_fetched_anew(store: RunningStore, model: Path) -> None:
    digest = (await download(store, model.as_uri()))[-1].manifest_digest
    path = store.config.ssd_root / "checkpoints" / NAME / "partition-0.bin"
    with path.open("r+b") as file:
        file.seek(40 * MIB)
        file.write(b"x" * 64)
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(ChecksumMismatch, match="downloaded again"):
        await store.load(NAME)
    again = (await download(store, model.as_uri(), digest=digest))[-1]
    assert not again.was_present
    assert (await store.load(NAME)).done and not (await store.row(NAME)).quarantined


async def test_a_full_ssd_is_said_and_leaves_nothing(config: StoreConfig, model: Path) -> None:
    from dataclasses import replace

    async with running_store(replace(config, ssd_capacity_bytes=20 * MIB)) as store:
        with pytest.raises(DiskFull, match="SSD cache"):
            await download(store, model.as_uri())
        inventory = await store.client.inventory()
        assert inventory.ssd_used_bytes == 0 and not inventory.checkpoints
        # No converter is left; its planner is the zygote's.
        assert not descendants(store.process.pid)


async def test_an_architecture_nobody_serves_is_refused_in_words(store: RunningStore, tmp_path: Path) -> None:
    from tests.integration.store_checkpoints import write_source

    source = write_source(tmp_path / "odd", size_bytes=4096)
    (source / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(SourceUnsupported):
        await download(store, source.as_uri())

"""One pass from a source to DRAM and SSD, held against a fetch and conversion of the whole."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.rate_limited_proxy import RateLimitedProxy
from firstlight.domain.errors import (
    CheckpointMismatch,
    ChecksumMismatch,
    DiskFull,
    SourceCorrupt,
    SourceUnsupported,
)
from gpu_worker.store.contents import small_files
from gpu_worker.store.streaming.planner import Planner
from native_loader import open_checkpoint
from tests.integration import store_s3
from tests.integration.streaming_host import MIB, NAME, StreamingHost, streaming_host
from tests.integration.test_store_sources import folder_server
from tests.integration.tiny_models import write_tiny_model


@pytest_asyncio.fixture(scope="module")
async def planner() -> AsyncIterator[Planner]:
    """One for all tests: it takes seconds to start, as it does for a host."""
    made = Planner()
    yield made
    await made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama in three shards of float32: 86 MB, six chunks of bfloat16 of it."""
    directory = tmp_path_factory.mktemp("model") / "llama"
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=30_000,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.save_pretrained(directory, max_shard_size="60MB")
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 64, "name_or_path": "x"}')
    return directory


@pytest_asyncio.fixture(scope="module")
async def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fetch and conversion of the whole makes of the model."""
    async with streaming_host(tmp_path_factory.mktemp("staged"), None) as host:
        await host.order(model.as_uri()).wait()
        kept = tmp_path_factory.mktemp("whole") / "llama"
        shutil.copytree(host.cache.get(NAME).directory, kept)
        return kept


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, model: Path, whole: Path) -> Iterator[str]:
    with store_s3.s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        client = store_s3.bucket(endpoint)
        for path in model.iterdir():
            client.put(f"llama/{path.name}", path.read_bytes())
        for path in whole.iterdir():
            client.put(f"native/{path.name}", path.read_bytes())
        yield endpoint


@pytest.fixture
def link(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RateLimitedProxy]:
    with RateLimitedProxy(s3) as proxy:
        for key, value in store_s3.environment(proxy.endpoint).items():
            monkeypatch.setenv(key, value)
        yield proxy


@pytest_asyncio.fixture
async def host(tmp_path: Path, planner: Planner) -> AsyncIterator[StreamingHost]:
    async with streaming_host(tmp_path / "ssd", planner) as made:
        yield made


def same(directory: Path, whole: Path) -> bool:
    """Every file of two checkpoints, byte for byte."""
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in directory.iterdir()} == names
    return all((directory / name).read_bytes() == (whole / name).read_bytes() for name in names)


LAYOUTS = ["s3 shards", "file shards", "s3 native", "file native", "web native", "hub native"]


@pytest.fixture
def web(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with folder_server(whole) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield endpoint


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_streamed_is_what_a_whole_conversion_makes(
    host: StreamingHost, link: RateLimitedProxy, web: str, model: Path, whole: Path, layout: str
) -> None:
    source = {
        "s3 shards": "s3://models/llama",
        "file shards": model.as_uri(),
        "s3 native": "s3://models/native",
        "file native": whole.as_uri(),
        "web native": f"{web}/plain/tiny",
        "hub native": "hf://org/tiny",
    }[layout]
    state = await host.order(source).wait()
    assert same(host.cache.get(NAME).directory, whole)
    assert host.pool.is_resident(NAME) and not host.staged()
    size_bytes = open_checkpoint(whole).size_bytes
    assert (state.ssd_bytes, state.dram_bytes) == (size_bytes, size_bytes)
    again = await host.order(source, digest=state.manifest_digest).wait()
    assert again.was_present


async def test_fused_and_cast_weights_are_the_same_as_converted_whole(
    host: StreamingHost, tmp_path: Path
) -> None:
    source = write_tiny_model(tmp_path / "source", "mixtral").as_uri()
    await host.order(source, dtype="float16").wait()
    async with streaming_host(tmp_path / "staged", None) as staged:
        await staged.order(source, dtype="float16").wait()
        assert same(host.cache.get(NAME).directory, staged.cache.get(NAME).directory)


async def test_the_first_layer_is_there_before_the_rest_and_readers_are_let_in(
    host: StreamingHost, link: RateLimitedProxy, whole: Path
) -> None:
    link.bytes_per_s = 40 * MIB
    work = host.order("s3://models/llama")
    await host.loads.until_begun(NAME)
    arrival = await host.loads.arrival(NAME)
    manifest = open_checkpoint(arrival.directory).manifest
    assert [one.name for one in manifest.tensors] == [
        one.name for one in open_checkpoint(whole).manifest.tensors
    ]
    prefix = manifest.prefix_bytes_for(["model.layers.0.mlp.down_proj.weight"])
    assert await asyncio.to_thread(arrival.board.wait_prefix, prefix, 30)
    assert not work.task.done() and arrival.board.bytes_done < arrival.board.bytes_total
    # Who writes prompts for it gets its tokenizer while the rest of the weights is still on its way.
    folder = await asyncio.wait_for(host.loads.small_files(NAME), 30)
    assert small_files(folder) == small_files(whole)
    assert not work.task.done() and arrival.board.bytes_done < arrival.board.bytes_total
    link.bytes_per_s = 1e12
    state = await work.wait()
    assert link.bytes_passed < 1.1 * state.source_bytes


async def test_a_pool_without_room_is_no_hindrance(
    planner: Planner, tmp_path: Path, model: Path, whole: Path
) -> None:
    async with streaming_host(tmp_path / "ssd", planner, dram_bytes=16 * MIB) as small:
        state = await small.order(model.as_uri()).wait()
        assert same(small.cache.get(NAME).directory, whole)
        assert state.dram_bytes == 0 and not small.pool.is_resident(NAME)


async def test_connections_that_drop_are_taken_up_again(
    host: StreamingHost, link: RateLimitedProxy, whole: Path
) -> None:
    link.drop_after_bytes = 20 * MIB
    await host.order("s3://models/llama").wait()
    assert same(host.cache.get(NAME).directory, whole)


async def test_a_download_that_was_stopped_goes_on_at_a_chunk(
    planner: Planner, tmp_path: Path, link: RateLimitedProxy, whole: Path
) -> None:
    link.bytes_per_s = 60 * MIB
    async with streaming_host(tmp_path / "ssd", planner) as first:
        work = first.order("s3://models/llama")
        async for state in work.watch():
            if state.ssd_bytes >= 32 * MIB:
                break
    assert not (tmp_path / "ssd" / "checkpoints" / NAME).exists()
    before, link.bytes_passed, link.bytes_per_s = link.bytes_passed, 0, 1e12
    async with streaming_host(tmp_path / "ssd", planner) as second:
        state = await second.order("s3://models/llama").wait()
        assert same(second.cache.get(NAME).directory, whole)
        # float32 comes, bfloat16 is kept: a chunk on the SSD is twice its bytes on the link.
        assert before > 64 * MIB and link.bytes_passed < state.source_bytes - 60 * MIB


async def test_a_chunk_that_rots_on_the_ssd_is_fetched_again(
    planner: Planner, tmp_path: Path, link: RateLimitedProxy, whole: Path
) -> None:
    link.bytes_per_s = 60 * MIB
    async with streaming_host(tmp_path / "ssd", planner) as first:
        async for state in first.order("s3://models/llama").watch():
            if state.ssd_bytes >= 32 * MIB:
                break
    with (tmp_path / "ssd" / "staging" / NAME / "whole" / "partition-0.bin").open("r+b") as file:
        file.seek(MIB)
        file.write(b"rot")
    link.bytes_per_s = 1e12
    async with streaming_host(tmp_path / "ssd", planner) as second:
        await second.order("s3://models/llama").wait()
        assert same(second.cache.get(NAME).directory, whole)


async def test_a_source_that_changes_meanwhile_is_said(
    host: StreamingHost, link: RateLimitedProxy, s3: str, model: Path
) -> None:
    client = store_s3.bucket(s3)
    for path in model.iterdir():
        client.put(f"changing/{path.name}", path.read_bytes())
    link.bytes_per_s = 30 * MIB
    work = host.order("s3://models/changing")
    async for state in work.watch():
        if state.ssd_bytes:
            break
    for path in model.glob("*.safetensors"):
        client.put(f"changing/{path.name}", path.read_bytes()[::-1])
    link.bytes_per_s = 1e12
    with pytest.raises(SourceCorrupt, match="changed while"):
        await work.wait()
    assert not host.staged() and host.cache.find(NAME) is None and not host.pool.checkpoint_ids


async def test_bytes_other_than_their_checksum_are_refused(
    host: StreamingHost, tmp_path: Path, whole: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(whole, bad)
    data = bytearray((bad / "partition-0.bin").read_bytes())
    data[20 * MIB] ^= 1
    (bad / "partition-0.bin").write_bytes(data)
    with pytest.raises(ChecksumMismatch, match="twice"):
        await host.order(bad.as_uri()).wait()
    assert not host.staged() and not host.pool.checkpoint_ids and host.cache.used_bytes == 0


async def test_other_bytes_than_the_first_conversion_go_nowhere(host: StreamingHost, model: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="first conversion"):
        await host.order(model.as_uri(), digest="sha256:" + "0" * 64).wait()
    assert not host.staged() and not host.pool.checkpoint_ids and host.cache.used_bytes == 0


async def test_a_checkpoint_of_another_type_is_not_passed_off(host: StreamingHost, whole: Path) -> None:
    with pytest.raises(SourceUnsupported, match="bfloat16"):
        await host.order(whole.as_uri(), dtype="float32").wait()


async def test_a_disk_that_fills_up_is_said_before_a_byte_is_wasted(
    planner: Planner, tmp_path: Path, model: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(small)]
    if (await asyncio.to_thread(subprocess.run, mount, check=False)).returncode != 0:
        pytest.skip("a small disk takes a mount, and this user may not mount")
    try:
        async with streaming_host(small, planner) as full:
            with pytest.raises(DiskFull):
                await full.order(model.as_uri()).wait()
            assert not full.staged() and not full.pool.checkpoint_ids and full.cache.used_bytes == 0
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(small)], check=True)


async def test_weights_that_are_missing_are_never_made_up(host: StreamingHost, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = write_tiny_model(tmp_path / "source", "llama")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceCorrupt, match="up_proj"):
        await host.order(source.as_uri()).wait()
    assert not host.staged()

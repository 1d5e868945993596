"""Weights on their way to a GPU, from a real store process to an engine, over a stand-in of the CUDA driver.

Both processes use the stand-in's host memory in place of a GPU's, and the model computes on the CPU right out
of it. What this shows is the protocol and its failures, not that a GPU was there.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from firstlight.domain.errors import EngineGone, FirstlightError, GpuError, NotFound
from gpu_worker.engine.attachment import Attacher
from gpu_worker.engine.control import AttachCommand, EngineConfig
from gpu_worker.engine.gpu_weights import GpuPlace, GpuWeights, say_outcome
from gpu_worker.engine.interface import EngineRequest, Token
from gpu_worker.engine.state import EngineState
from gpu_worker.engine.store_link import GpuLoan, StoreLink
from gpu_worker.engine.weights_gate import WeightsGate
from gpu_worker.store.config import StoreConfig
from native_loader import Checkpoint, GpuMemory, open_checkpoint, save_checkpoint
from tests.integration.engine_fixtures import put_in_cache
from tests.integration.test_store_process import RunningStore, running_store
from tests.native.cuda_standin.standin import ILLEGAL_ADDRESS, NOT_PERMITTED, library

MIB = 2**20
MODEL = "tiny@aaaa"
PROMPT = (5, 17, 3, 96, 41, 8, 22)
SLOWLY = {"STANDIN_CUDA_DELAY_US": "300000"}


def bytes_of_standin(memory: GpuMemory) -> torch.Tensor:
    """The stand-in's device memory is this process's: as a tensor of the CPU."""
    array = (ctypes.c_uint8 * memory.size_bytes).from_address(memory.pointer)
    array.memory = memory  # type: ignore[attr-defined] # kept alive by what torch keeps alive
    return torch.frombuffer(array, dtype=torch.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Some seventy MiB, so that it is several chunks; the head is tied to the embedding."""
    directory = tmp_path_factory.mktemp("gpu")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory / "source")
    model = AutoModelForCausalLM.from_pretrained(directory / "source", dtype=torch.float32)
    files = {path.name: path.read_bytes() for path in (directory / "source").glob("*.json")}
    save_checkpoint(model, directory / MODEL, files=files)
    found = open_checkpoint(directory / MODEL)
    assert len(found.segments([0])) >= 4
    return found


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> list[int]:
    """What transformers itself goes on with, greedily."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path.parent / "source", dtype=torch.float32)
    found = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)
    return [int(token) for token in found[0, len(PROMPT) :]]


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """For processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@asynccontextmanager
async def store(
    directory: Path,
    checkpoint: Checkpoint,
    *,
    cuda_library: str | None = None,
    dram_mib: int = 256,
    **env: str,
) -> AsyncIterator[RunningStore]:
    config = StoreConfig(
        host_id="host-a",
        state_dir=str(directory / "store"),
        ssd_capacity_bytes=1 << 30,
        dram_capacity_bytes=dram_mib * MIB,
        cuda_library=library() if cuda_library is None else cuda_library,
    )
    if not config.ssd_root.exists():
        put_in_cache(config.ssd_root, checkpoint.path, MODEL)
    with environment(**env):
        starting = running_store(config)
        running = await starting.__aenter__()
    try:
        yield running
    finally:
        await starting.__aexit__(None, None, None)


@asynccontextmanager
async def link_to(running: RunningStore) -> AsyncIterator[StoreLink]:
    link = await StoreLink.connect(str(running.config.socket_path))
    try:
        yield link
    finally:
        await link.close()


def gpu() -> GpuPlace:
    return GpuPlace(0, library=library(), as_bytes=bytes_of_standin)


async def put(checkpoint: Checkpoint, link: StoreLink) -> GpuWeights:
    pinned = await link.pin(MODEL, while_loading=True)
    return await gpu().put(MODEL, checkpoint, pinned, link)


async def until_there(weights: GpuWeights) -> bool:
    return await asyncio.to_thread(weights.board.wait_prefix, weights.board.bytes_total, 60)


def is_whole(weights: GpuWeights, checkpoint: Checkpoint) -> bool:
    """Bit for bit what the file holds, in the checkpoint's own layout."""
    content = memoryview((checkpoint.path / "partition-0.bin").read_bytes())
    wanted = checkpoint.bind([content])
    return set(wanted) == set(weights.tensors) and all(
        torch.equal(tensor, wanted[name]) and tensor.stride() == wanted[name].stride()
        for name, tensor in weights.tensors.items()
    )


@pytest.mark.parametrize("dram_mib", [256, 40])
async def test_an_engine_serves_what_came_from_the_store(
    tmp_path: Path, checkpoint: Checkpoint, expected: list[int], dram_mib: int
) -> None:
    """From SSD through DRAM to the GPU's memory; through a ring where the pool is smaller than the model."""
    assert checkpoint.size_bytes > 40 * MIB
    async with (
        store(tmp_path, checkpoint, dram_mib=dram_mib, STANDIN_CUDA_DELAY_US="20000") as running,
        link_to(running) as link,
    ):
        state = EngineState()
        lost: list[EngineGone] = []
        attacher = Attacher(
            EngineConfig(store_socket=""),
            state,
            link,
            endpoint="here",
            on_weights_lost=lost.append,
            gpu=gpu(),
        )
        attached = await attacher.attach(
            AttachCommand(instance_id="i", epoch=1, model="tiny", checkpoint_id=MODEL, max_concurrency=1)
        )
        request = EngineRequest(request_id="r", prompt_token_ids=PROMPT, max_tokens=6, ignore_eos=True)
        engine = state.ready_engine()
        try:
            events = [event async for event in engine.start(request)]
        finally:
            engine.close()
        assert [event.token_id for event in events if isinstance(event, Token)] == expected
        parameters = sum(entry.size_bytes for entry in checkpoint.manifest.tensors)
        assert attached.parameter_bytes == parameters, "what is tied is there once"
        assert not lost


async def test_bytes_are_the_files_and_went_straight_from_pinned_memory(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    async with store(tmp_path, checkpoint) as running, link_to(running) as link:
        weights = await put(checkpoint, link)
        assert weights.is_from_store
        assert await until_there(weights)
        assert is_whole(weights, checkpoint)
        assert (await running.load(MODEL)).gpu_bytes == checkpoint.size_bytes
        outcome = await link.gpu_outcome(MODEL)
        assert outcome["pinned_bytes"] + outcome["bounced_bytes"] == checkpoint.size_bytes
        # The arena is pinned in the background: sooner or later all of a copy comes from pinned memory.
        async with asyncio.timeout(60):
            while outcome["pinned_bytes"] != checkpoint.size_bytes:
                again = await put(checkpoint, link)
                assert await until_there(again) and is_whole(again, checkpoint)
                outcome = await link.gpu_outcome(MODEL)
        embedding = weights.tensors["model.embed_tokens.weight"]
        assert weights.tensors["lm_head.weight"].data_ptr() == embedding.data_ptr()


async def test_a_store_without_gpus_leaves_the_copy_to_the_engine(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    async with store(tmp_path, checkpoint, cuda_library="") as running, link_to(running) as link:
        weights = await put(checkpoint, link)
        assert not weights.is_from_store
        assert await until_there(weights) and is_whole(weights, checkpoint)


@pytest.mark.parametrize(
    "failure",
    [
        f"cuInit:0:{NOT_PERMITTED}:1",
        f"cuDevicePrimaryCtxRetain:0:{NOT_PERMITTED}:1",
        f"cuIpcOpenMemHandle_v2:0:{NOT_PERMITTED}:0",
        f"cuStreamCreate:1:{NOT_PERMITTED}:0",
    ],
)
async def test_a_store_whose_driver_refuses_leaves_the_copy_to_the_engine(
    tmp_path: Path, checkpoint: Checkpoint, failure: str
) -> None:
    async with store(tmp_path, checkpoint, STANDIN_CUDA_FAIL=failure) as running, link_to(running) as link:
        weights = await put(checkpoint, link)
        assert not weights.is_from_store
        assert await until_there(weights) and is_whole(weights, checkpoint)


async def test_a_store_that_cannot_pin_copies_all_the_same(tmp_path: Path, checkpoint: Checkpoint) -> None:
    async with (
        store(tmp_path, checkpoint, STANDIN_CUDA_FAIL=f"cuMemHostRegister_v2:0:{NOT_PERMITTED}:0") as running,
        link_to(running) as link,
    ):
        weights = await put(checkpoint, link)
        assert weights.is_from_store
        assert await until_there(weights) and is_whole(weights, checkpoint)


async def test_a_gpu_that_breaks_in_the_midst_ends_the_load_and_is_left_alone(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    """The engine is told plainly; the next start on this host goes without the store's context."""
    fail = f"cuMemcpyHtoDAsync_v2:2:{ILLEGAL_ADDRESS}:1"
    async with store(tmp_path, checkpoint, STANDIN_CUDA_FAIL=fail) as running:
        async with link_to(running) as link:
            weights = await put(checkpoint, link)
            assert weights.is_from_store
            gate = WeightsGate(weights.board, is_source_lost=lambda: link.is_lost)
            with pytest.raises(EngineGone, match="not complete"):
                await asyncio.to_thread(gate.wait, checkpoint.size_bytes)
            with pytest.raises(GpuError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
                await link.gpu_outcome(MODEL)
        async with link_to(running) as link:
            weights = await put(checkpoint, link)
            assert not weights.is_from_store
            assert await until_there(weights) and is_whole(weights, checkpoint)


async def test_a_store_that_dies_in_the_midst_is_noticed(tmp_path: Path, checkpoint: Checkpoint) -> None:
    async with store(tmp_path, checkpoint, **SLOWLY) as running, link_to(running) as link:
        weights = await put(checkpoint, link)
        gate = WeightsGate(weights.board, is_source_lost=lambda: link.is_lost)
        waiting = asyncio.create_task(asyncio.to_thread(gate.wait, checkpoint.size_bytes))
        running.process.kill()
        with pytest.raises(EngineGone, match="store went away"):
            await waiting
        await say_outcome(weights, MODEL, link)  # says it, raises nothing


# Imports no transformers: it is there to be killed.
ENGINE = """
import asyncio, sys
from pathlib import Path
import torch
from gpu_worker.engine.binding import open_at
from gpu_worker.engine.gpu_weights import GpuPlace
from gpu_worker.engine.store_link import StoreLink

async def main(socket, directory, model, library):
    link = await StoreLink.connect(socket)
    as_bytes = lambda memory: torch.empty(memory.size_bytes, dtype=torch.uint8)
    place = GpuPlace(0, library=library, as_bytes=as_bytes)
    pinned = await link.pin(model, while_loading=True)
    weights = await place.put(model, open_at(Path(directory)), pinned, link)
    print("lent" if weights.is_from_store and not weights.board.is_ended else "late", flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_engine_that_is_killed_in_the_midst_leaves_nothing_held(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    async with store(tmp_path, checkpoint, **SLOWLY) as running:
        engine = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            ENGINE,
            str(running.config.socket_path),
            str(checkpoint.path),
            MODEL,
            library(),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert engine.stdout is not None
        assert (await asyncio.wait_for(engine.stdout.readline(), 60)).strip() == b"lent"
        await running.until_pins(MODEL, 1)
        engine.send_signal(signal.SIGKILL)
        await engine.wait()
        await running.until_pins(MODEL, 0)
        async with link_to(running) as link:
            weights = await put(checkpoint, link)
            assert weights.is_from_store
            assert await until_there(weights) and is_whole(weights, checkpoint)


async def test_requests_that_make_no_sense_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    async with store(tmp_path, checkpoint) as running, link_to(running) as link:
        device = gpu().device
        memory = device.allocate(MIB)
        loan = GpuLoan(gpu=device.facts.uuid, handle=memory.handle())
        chunk = checkpoint.manifest.chunk_bytes

        async def refused(loans: list[GpuLoan], chunk_bytes: int = chunk) -> str:
            with pytest.raises(FirstlightError) as caught:
                await link.copy_to_gpu(MODEL, loans, chunk_bytes=chunk_bytes)
            return caught.value.code

        assert await refused([loan]) == "checkpoint_not_found", "nothing is pinned"
        await link.pin(MODEL, while_loading=True)
        assert await refused([]) == "invalid_input"
        assert await refused([loan, loan]) == "invalid_input"
        assert await refused([loan], chunk_bytes=1) == "invalid_input"
        assert await refused([GpuLoan(gpu="b" * 32, handle=loan.handle)]) == "gpu_unavailable"
        assert await refused([GpuLoan(gpu=loan.gpu, handle=b"short")]) == "invalid_input"
        assert await refused([GpuLoan(gpu=loan.gpu, handle=bytes(64))]) == "gpu_error"
        with pytest.raises(NotFound, match="no copy to a GPU"):
            await link.gpu_outcome(MODEL)

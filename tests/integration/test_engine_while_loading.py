"""Computing while weights come: logits equal to the bit, waits only for what is missing, plain failures."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from firstlight.domain.errors import EngineGone
from gpu_worker.engine.attention import Span, attending
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from gpu_worker.engine.step_plan import cut
from gpu_worker.engine.weights_gate import WeightsGate, parts_of
from native_loader import Checkpoint, ProgressBoard, open_checkpoint, save_checkpoint
from tests.integration.tiny_models import CONFIGS, write_tiny_model

CHUNK_BYTES = 4096
PROMPT = [5, 17, 3, 96, 41, 8, 22]


def logits(skeleton: Skeleton) -> torch.Tensor:
    cache = KeyValueCache(expected_tokens=len(PROMPT))
    with attending([Span(cache=cache, offset=0, length=len(PROMPT))]):
        rows = torch.tensor([len(PROMPT) - 1])
        return skeleton.logits(torch.tensor(PROMPT), torch.arange(len(PROMPT)), rows)


def checkpoint_of(directory: Path, name: str) -> Checkpoint:
    """Written from the module, which knows its ties."""
    source = write_tiny_model(directory / "source", name)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    files = {path.name: path.read_bytes() for path in source.glob("*.json")}
    save_checkpoint(model, directory / "checkpoint", files=files)
    return open_checkpoint(directory / "checkpoint")


class SlowLoad:
    """Memory full of not-a-number, which chunks replace one by one as the test says."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.bytes = (checkpoint.path / "partition-0.bin").read_bytes()
        self.memory = bytearray(b"\xff" * len(self.bytes))
        starts = range(0, len(self.bytes), CHUNK_BYTES)
        self.chunks = [(start, min(start + CHUNK_BYTES, len(self.bytes))) for start in starts]
        self.board = ProgressBoard([end - start for start, end in self.chunks])

    def bring(self, index: int) -> None:
        start, end = self.chunks[index]
        self.memory[start:end] = self.bytes[start:end]
        self.board.mark_done(index)


def needed(checkpoint: Checkpoint) -> dict[str, int]:
    """As the manifest tells it, for chunks that are small enough for a tiny model to have many."""
    ends = {entry.name: entry.offset + entry.size_bytes for entry in checkpoint.manifest.tensors}
    total = checkpoint.size_bytes
    upto = {name: min(-(-end // CHUNK_BYTES) * CHUNK_BYTES, total) for name, end in ends.items()}
    return upto | {alias: upto[target] for alias, target in checkpoint.manifest.aliases.items()}


class SeenGate(WeightsGate):
    """Tells when a pass has come to bytes that are not there."""

    def __init__(self, load: SlowLoad, *, is_source_lost: bool) -> None:
        super().__init__(load.board, is_source_lost=lambda: is_source_lost)
        self.has_stopped = threading.Event()
        self._load = load

    def wait(self, prefix_bytes: int) -> None:
        if self._load.board.prefix_bytes < prefix_bytes:
            self.has_stopped.set()
        super().wait(prefix_bytes)


def waiting_skeleton(
    checkpoint: Checkpoint, load: SlowLoad, *, is_source_lost: bool = False
) -> tuple[Skeleton, SeenGate]:
    skeleton = build_skeleton(checkpoint.path, dtype=torch.float32)
    gate = SeenGate(load, is_source_lost=is_source_lost)
    gate.install(skeleton.model, needed(checkpoint))
    skeleton.bind(checkpoint.bind([memoryview(load.memory)]))
    return skeleton, gate


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_logits_are_those_of_a_load_that_is_done(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, name)
    whole = SlowLoad(checkpoint)
    for index in range(len(whole.chunks)):
        whole.bring(index)
    expected = logits(waiting_skeleton(checkpoint, whole)[0])

    load = SlowLoad(checkpoint)
    skeleton, gate = waiting_skeleton(checkpoint, load)
    computing = threading.Thread(target=lambda: results.append(logits(skeleton)))
    results: list[torch.Tensor] = []
    computing.start()
    assert gate.has_stopped.wait(20)
    for index in range(len(load.chunks)):
        assert computing.is_alive(), "it did not wait for the rest"
        load.bring(index)
    computing.join(20)
    assert torch.equal(results[0], expected) and not expected.isnan().any()
    assert torch.equal(logits(skeleton), expected)
    assert not any(module._forward_pre_hooks for module in skeleton.model.modules()), "hooks are left"
    assert gate.waited_s > 0


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gemma2"])
def test_a_prompt_in_one_pass_is_cut_where_several_would_cut_it(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, name)
    load = SlowLoad(checkpoint)
    for index in range(len(load.chunks)):
        load.bring(index)
    skeleton, _ = waiting_skeleton(checkpoint, load)
    prompt = torch.arange(70) % 90 + 3
    cached = 5
    lengths = cut(cached, 65, chunk_tokens=16)
    assert lengths == [11, 16, 16, 16, 6]

    def begun() -> KeyValueCache:
        cache = KeyValueCache()
        with attending([Span(cache=cache, offset=0, length=cached)]):
            skeleton.logits(prompt[:cached], torch.arange(cached), torch.tensor([], dtype=torch.int64))
        return cache

    several, one = begun(), begun()
    for length in lengths:
        at = slice(several.length, several.length + length)
        with attending([Span(cache=several, offset=0, length=length)]):
            row = torch.tensor([length - 1])
            expected = skeleton.logits(prompt[at], torch.arange(70)[at], row)
    spans, ahead = [], 0
    for length in lengths:
        spans.append(Span(cache=one, offset=ahead, length=length, ahead=ahead))
        ahead += length
    with attending(spans):
        found = skeleton.logits(prompt[cached:], torch.arange(cached, 70), torch.tensor([64]))
    assert one.length == several.length == 70
    for layer in one.layers:
        for ours, theirs in zip(one.read(layer, 0, 70), several.read(layer, 0, 70), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_compute_follows_the_bytes(tmp_path: Path) -> None:
    """The first layer has run when only its own bytes are there."""
    checkpoint = checkpoint_of(tmp_path, "llama")
    load = SlowLoad(checkpoint)
    skeleton, _ = waiting_skeleton(checkpoint, load)
    ran = threading.Event()
    skeleton.model.model.layers[0].register_forward_hook(lambda *_: ran.set())
    results: list[torch.Tensor] = []
    computing = threading.Thread(target=lambda: results.append(logits(skeleton)))
    computing.start()
    first_layer = max(upto for name, upto in needed(checkpoint).items() if ".layers.0." in name)
    upto = next(index for index, (_, end) in enumerate(load.chunks) if end >= first_layer)
    assert upto + 1 < len(load.chunks) / 2
    for index in range(upto):
        load.bring(index)
    assert not ran.wait(0.05)
    load.bring(upto)
    assert ran.wait(5) and not results
    for index in range(upto + 1, len(load.chunks)):
        load.bring(index)
    computing.join(20)
    assert results


@pytest.mark.parametrize("is_source_lost", [False, True])
def test_a_load_that_ends_early_ends_the_pass(tmp_path: Path, is_source_lost: bool) -> None:
    checkpoint = checkpoint_of(tmp_path, "llama")
    load = SlowLoad(checkpoint)
    skeleton, _ = waiting_skeleton(checkpoint, load, is_source_lost=is_source_lost)
    load.bring(0)
    if not is_source_lost:
        threading.Timer(0.05, load.board.fail).start()
    with pytest.raises(EngineGone):
        logits(skeleton)


def test_a_wait_costs_no_cpu(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, "llama")
    load = SlowLoad(checkpoint)
    skeleton, gate = waiting_skeleton(checkpoint, load)

    def bring_all() -> None:
        for index in range(len(load.chunks)):
            load.bring(index)

    threading.Timer(0.6, bring_all).start()
    before_s = time.thread_time()
    logits(skeleton)
    assert gate.waited_s > 0.5
    assert time.thread_time() - before_s < 0.25


def test_every_tensor_belongs_to_exactly_one_part(tmp_path: Path) -> None:
    skeleton = build_skeleton(write_tiny_model(tmp_path, "gpt2"), dtype=torch.float32)
    names = [name for _, part in parts_of(skeleton.model) for name in part]
    assert len(names) == len(set(names))
    assert set(skeleton.model.state_dict()) <= set(names)

"""Tensors over loaded memory: nothing copied, nothing left to chance."""

from __future__ import annotations

import gc
import os
import time
import warnings
from pathlib import Path

import pytest
import torch

from firstlight.domain.errors import AttachFailed, InvalidInput
from native_loader import (
    Arena,
    ArenaView,
    CheckpointWriter,
    LoadJob,
    load_into,
    load_state_dict,
    open_checkpoint,
    save_checkpoint,
)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


def test_a_readers_tensors_lie_in_the_owners_memory(tmp_path: Path) -> None:
    state = {f"layers.{i}": torch.randn(33, 7) for i in range(20)}
    save_checkpoint(state, tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    offsets, total_bytes = checkpoint.manifest.arena_offsets()
    arena = Arena(total_bytes)
    LoadJob(arena, checkpoint.segments(offsets)).result(30)
    fd = arena.read_only_fd()
    view = ArenaView(fd, arena.size_bytes)
    os.close(fd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = checkpoint.bind([view.buffer(offsets[0], checkpoint.manifest.partitions[0].size_bytes)])
    for name, tensor in state.items():
        assert torch.equal(bound[name], tensor)
    entry = checkpoint.tensors["layers.5"]
    arena.write(offsets[0] + entry.offset, torch.full((1,), 42.0).numpy().tobytes())
    assert bound["layers.5"][0, 0] == 42.0
    view.close()
    arena.close()
    del view, arena
    gc.collect()
    assert bound["layers.5"][0, 0] == 42.0, "tensors keep the memory alive"


def test_buffers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_checkpoint({"a": torch.ones(5000)}, tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    for buffers in ([], [memoryview(bytes(100))], [memoryview(bytes(1 << 20))] * 2):
        with pytest.raises(InvalidInput):
            checkpoint.bind(buffers)


def test_a_type_torch_lacks_is_attach_failed(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "c", source="test", revision="0000") as writer:
        writer.add_tensor("a", bytes(3), dtype="F6_E2M3", shape=[4])
        writer.commit()
    with pytest.raises(AttachFailed):
        load_state_dict(tmp_path / "c")


def test_a_module_round_trips_with_its_ties(tmp_path: Path) -> None:
    module = Tied().eval()
    manifest = save_checkpoint(module, tmp_path / "c")
    assert dict(manifest.aliases) == {"head.weight": "embed.weight"}
    with torch.device("meta"):
        other = Tied().eval()
    load_into(other, tmp_path / "c")
    ids = torch.arange(11)
    assert torch.equal(module(ids), other(ids))
    assert other.head.weight is other.embed.weight
    with torch.no_grad():
        other.head.weight.zero_()
    assert other.embed.weight.abs().sum() == 0


def test_a_module_of_another_shape_is_attach_failed(tmp_path: Path) -> None:
    save_checkpoint(torch.nn.Linear(3, 4), tmp_path / "c")
    for module in (torch.nn.Linear(4, 3), torch.nn.Linear(3, 4, bias=False)):
        with pytest.raises(AttachFailed):
            load_into(module, tmp_path / "c")


def test_binding_takes_milliseconds(tmp_path: Path) -> None:
    """Ten for 300 tensors on an idle machine; the limit here leaves room for a busy one. Best of five."""
    save_checkpoint({f"layers.{i}": torch.ones(16) for i in range(300)}, tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    buffer = memoryview(bytearray(checkpoint.size_bytes))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        checkpoint.bind([buffer])
        times.append(time.perf_counter() - began)
    assert min(times) < 0.02

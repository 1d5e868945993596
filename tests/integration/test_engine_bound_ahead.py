"""Tensors that were made before their memory was known are the checkpoint's, bit for bit, once it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from firstlight.domain.errors import AttachFailed
from gpu_worker.engine.binding import bind_ahead, dtype_of
from gpu_worker.engine.bound_ahead import BoundAhead
from gpu_worker.engine.skeleton import build_skeleton
from native_loader import Arena, ArenaView, Checkpoint, LoadJob, open_checkpoint, save_checkpoint
from tests.integration.tiny_models import write_tiny_model


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    storage = torch.randn(40)
    tied = torch.randn(6, 4)
    return {
        "matrix": torch.randn(16, 8).to(torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "nothing": torch.empty(0, 7),
        "flags": torch.tensor([True, False, True]),
        "transposed": torch.randn(5, 9).t(),
        "view": storage[3:23].view(4, 5),
        "overlapping": storage[10:30],
        "first": tied,
        "second": tied,
    }


def _loaded(checkpoint: Checkpoint) -> list[memoryview]:
    offsets, total_bytes = checkpoint.manifest.arena_offsets()
    with Arena(total_bytes, kind="memfd") as arena:
        LoadJob(arena, checkpoint.segments(offsets)).result()
        view = ArenaView(arena.read_only_fd(), arena.size_bytes)
    sizes = [partition.size_bytes for partition in checkpoint.manifest.partitions]
    return [view.buffer(at, size) for at, size in zip(offsets, sizes, strict=True)]


def test_every_tensor_is_what_binding_to_the_memory_gives(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    save_checkpoint(state, tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    ahead = BoundAhead(checkpoint.manifest)
    buffers = _loaded(checkpoint)
    ahead.fill(buffers)
    assert ahead.tensors.keys() == state.keys()
    for name, wanted in state.items():
        found = ahead.tensors[name]
        assert (found.dtype, found.shape, found.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
        assert torch.equal(found, wanted), name
    assert ahead.tensors["first"] is ahead.tensors["second"]
    shared = ahead.tensors["overlapping"].data_ptr() - ahead.tensors["view"].data_ptr()
    assert shared == 7 * 4


def test_memory_of_another_size_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_checkpoint(state, tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    ahead = BoundAhead(checkpoint.manifest)
    buffers = _loaded(checkpoint)
    with pytest.raises(AttachFailed):
        ahead.fill([buffers[0][:-4096]])
    with pytest.raises(AttachFailed):
        ahead.fill([])


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2", "mixtral"])
def test_a_model_bound_ahead_is_the_one_that_is_bound_to_its_memory(tmp_path: Path, name: str) -> None:
    source = write_tiny_model(tmp_path / "source", name)
    state = AutoModelForCausalLM.from_pretrained(source).state_dict()
    files = {path.name: path.read_bytes() for path in source.glob("*.json")}
    save_checkpoint(state, tmp_path / "m", files=files)
    checkpoint = open_checkpoint(tmp_path / "m")
    buffers = _loaded(checkpoint)
    early, late = (build_skeleton(checkpoint.path, dtype=dtype_of(checkpoint)) for _ in range(2))
    ahead = bind_ahead(early, checkpoint)
    assert ahead is not None
    ahead.fill(buffers)
    parameter_bytes = late.bind(checkpoint.bind(buffers))
    assert ahead.size_bytes == parameter_bytes
    for key, wanted in late.model.state_dict().items():
        assert torch.equal(early.model.state_dict()[key], wanted)
    assert len(list(early.model.parameters())) == len(list(late.model.parameters()))


def test_another_architectures_tensors_are_refused_before_any_memory_is_there(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    write_tiny_model(tmp_path / "source", "llama")
    save_checkpoint(tmp_path / "source", tmp_path / "m")
    save_checkpoint(state, tmp_path / "other")
    checkpoint = open_checkpoint(tmp_path / "m")
    skeleton = build_skeleton(checkpoint.path, dtype=dtype_of(checkpoint))
    with pytest.raises(AttachFailed):
        bind_ahead(skeleton, open_checkpoint(tmp_path / "other"))

"""A plan made from headers against the conversion itself: the same manifest, the same bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_worker.convert.conversion import convert
from gpu_worker.convert.planning import NotStreamable, plan
from gpu_worker.convert.stream_plan import read_plan, write_plan
from tests.integration.plan_filling import filled
from tests.integration.tiny_models import CONFIGS, write_tiny_model

DTYPES = ("bfloat16", "float16", "float32")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_is_the_conversion(tmp_path: Path, name: str) -> None:
    source = write_tiny_model(tmp_path / "source", name)
    dtype = DTYPES[list(CONFIGS).index(name) % len(DTYPES)]
    written = convert(
        source, tmp_path / "whole", dtype=dtype, model="m", revision="r", on_progress=lambda *_: None
    )
    bare = _without_weights(source, tmp_path / "headers")
    made = plan(bare, dtype=dtype, model="m", revision="r")
    for field in ("tensors", "aliases", "dtype", "source", "revision", "transformers_version", "chunk_bytes"):
        assert getattr(made.manifest, field) == getattr(written, field), field
    assert filled(made, source) == (tmp_path / "whole" / "partition-0.bin").read_bytes()
    for file, content in made.files:
        assert content == (tmp_path / "whole" / file).read_bytes()


def test_a_plan_survives_being_written_down(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "mixtral")
    made = plan(source, dtype="bfloat16", model="m", revision="r")
    write_plan(made, tmp_path / "kept")
    sizes = {path.name: path.stat().st_size for path in source.iterdir()}
    assert read_plan(tmp_path / "kept", file_sizes=sizes) == made


def _retyped(source: Path, dtype: torch.dtype) -> Path:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("dtype", DTYPES)
def test_float64_is_cast_on_its_way(tmp_path: Path, dtype: str) -> None:
    source = _retyped(write_tiny_model(tmp_path / "source", "llama"), torch.float64)
    convert(source, tmp_path / "whole", dtype=dtype, model="m", revision="r", on_progress=lambda *_: None)
    made = plan(_without_weights(source, tmp_path / "headers"), dtype=dtype, model="m", revision="r")
    assert filled(made, source) == (tmp_path / "whole" / "partition-0.bin").read_bytes()


def test_what_is_more_than_copies_is_said(tmp_path: Path) -> None:
    source = _retyped(write_tiny_model(tmp_path / "source", "llama"), torch.int32)
    with pytest.raises(NotStreamable, match="I32"):
        plan(source, dtype="bfloat16", model="m", revision="r")


def _without_weights(source: Path, directory: Path) -> Path:
    """The source with holes where its weights were: what a store knows before the first weight has come."""
    directory.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (directory / path.name).write_bytes(path.read_bytes())
            continue
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        with (directory / path.name).open("wb") as file:
            file.write(data[: 8 + length])
            file.truncate(len(data))
    return directory

"""A plan of a GGUF file, made from its header alone, against what transformers makes of the whole file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_worker.convert.gguf_header import header_end
from gpu_worker.convert.planning import NotStreamable, plan
from gpu_worker.convert.source import locate
from gpu_worker.convert.stream_plan import check_plan
from gpu_worker.convert.weights import load_model
from native_loader.dtypes import torch_dtype
from tests.integration.plan_filling import filled
from tests.integration.tiny_gguf import ARCHITECTURES, write_tiny_gguf


def _header_of(path: Path, folder: Path) -> Path:
    """The file with a hole where its weights were."""
    folder.mkdir()
    data = path.read_bytes()
    with (folder / path.name).open("wb") as file:
        file.write(data[: header_end(data)])
        file.truncate(len(data))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plan_is_the_conversion(tmp_path: Path, architecture: str, dtype: str) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", architecture)
    made = plan(_header_of(path, tmp_path / "headers"), dtype=dtype, model="m", revision="r")
    check_plan(made, file_sizes={path.name: path.stat().st_size})
    partition = filled(made, tmp_path)
    state = load_model(locate(path), dtype=getattr(torch, dtype)).state_dict()
    assert {*state} == {*(entry.name for entry in made.manifest.tensors), *made.manifest.aliases}
    for entry in made.manifest.tensors:
        data = partition[entry.offset : entry.offset + entry.size_bytes]
        found = torch.frombuffer(bytearray(data), dtype=torch_dtype(entry.dtype)).reshape(entry.shape)
        assert torch.equal(found, state[entry.name]), entry.name


def test_what_is_followed_no_further_is_converted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "llama")
    monkeypatch.setattr("gpu_worker.convert.gguf_following.PACKED", {})
    with pytest.raises(NotStreamable, match="is of type Q4_0"):
        plan(_header_of(path, tmp_path / "headers"), dtype="bfloat16", model="m", revision="r")

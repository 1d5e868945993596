"""What a source is taken for, what is refused, and how large it will be; from headers, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
from safetensors.numpy import save_file

from firstlight.domain.errors import FirstlightError, SourceCorrupt, SourceUnreachable, SourceUnsupported
from gpu_worker.convert import estimate_size, locate

LLAMA = {"model_type": "llama", "max_position_embeddings": 128}


def write_layout(directory: Path, config: object = LLAMA, shards: int = 1) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for shard in range(shards):
        tensors = {f"layer.{shard}": numpy.zeros((3, 5), dtype=numpy.float16)}
        save_file(tensors, directory / f"model-{shard}.safetensors")
    return directory


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_size_is_that_of_the_target_dtype(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "model", shards=2)
    assert estimate_size(source) == 2 * 15 * 4
    assert estimate_size(source, "bfloat16") == 2 * 15 * 2


def test_gguf_is_sized_and_found_alone_in_its_folder(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    assert estimate_size(path) == estimate_size(tmp_path) == 128 * 4
    assert locate(tmp_path) == locate(path)


def test_sizing_needs_no_torch(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from gpu_worker.convert import estimate_size;"
        "estimate_size(Path(sys.argv[1])); assert 'torch' not in sys.modules and 'gguf' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(source)], check=True)


def pickle_only(path: Path) -> Path:
    write_layout(path, shards=0)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return path


def pickle_file(path: Path) -> Path:
    path.mkdir()
    (path / "model.pt").write_bytes(b"\x80\x04")
    return path / "model.pt"


def remote_code(path: Path) -> Path:
    return write_layout(path, {**LLAMA, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})


def unknown_architecture(path: Path) -> Path:
    return write_layout(path, {"model_type": "perceiver"})


def batch_dependent_rope(path: Path) -> Path:
    return write_layout(path, {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}})


def quantized(path: Path) -> Path:
    return write_layout(path, {**LLAMA, "quantization_config": {"quant_method": "gptq"}})


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def two_gguf(path: Path) -> Path:
    path.mkdir()
    write_gguf(path / "a.gguf")
    write_gguf(path / "b.gguf")
    return path


def torn_config(path: Path) -> Path:
    write_layout(path)
    (path / "config.json").write_text('{"model_type": "lla')
    return path


def list_config(path: Path) -> Path:
    return write_layout(path, ["llama"])


def torn_shard(path: Path) -> Path:
    write_layout(path)
    shard = path / "model-0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    return path


def no_gguf_at_all(path: Path) -> Path:
    path.mkdir()
    (path / "model.gguf").write_bytes(b"hello")
    return path


def torn_gguf(path: Path) -> Path:
    path.mkdir()
    whole = write_gguf(path / "model.gguf")
    whole.write_bytes(whole.read_bytes()[:40])
    return path


def absent(path: Path) -> Path:
    return path


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (pickle_only, SourceUnsupported),
        (pickle_file, SourceUnsupported),
        (remote_code, SourceUnsupported),
        (unknown_architecture, SourceUnsupported),
        (batch_dependent_rope, SourceUnsupported),
        (quantized, SourceUnsupported),
        (empty_folder, SourceUnsupported),
        (two_gguf, SourceUnsupported),
        (torn_config, SourceCorrupt),
        (list_config, SourceCorrupt),
        (torn_shard, SourceCorrupt),
        (no_gguf_at_all, SourceCorrupt),
        (torn_gguf, SourceCorrupt),
        (absent, SourceUnreachable),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], error: type[FirstlightError]
) -> None:
    with pytest.raises(error) as raised:
        estimate_size(make(tmp_path / "source"))
    assert len(raised.value.message) > 10

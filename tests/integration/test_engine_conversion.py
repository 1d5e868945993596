"""The converter, as the process it is: what it writes serves bit for bit what transformers would load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gpu_worker.engine.architectures import require_supported
from gpu_worker.engine.binding import dtype_of, open_at
from gpu_worker.engine.skeleton import build_skeleton
from native_loader import load_state_dict
from tests.integration.engine_fixtures import chat_ids, smollm2_checkpoint, text_of, tokenizer
from tests.integration.tiny_models import write_tiny_model


def convert(source: Path, destination: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and the JSON lines it said."""
    command = [sys.executable, "-m", "gpu_worker.convert", str(source), str(destination), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama tied", "float32"), ("gpt_neox", "bfloat16"), ("mixtral", "float32")]
)
def test_converted_equals_loaded(tmp_path: Path, name: str, dtype: str) -> None:
    source = write_tiny_model(tmp_path / "source", name)
    status, said = convert(
        source, tmp_path / "m@aaaa", "--dtype", dtype, "--model", "m", "--revision", "aaaa"
    )
    assert status == 0
    checkpoint = open_at(tmp_path / "m@aaaa")
    assert said[-1] == {
        "done": True,
        "manifest_digest": checkpoint.manifest.digest,
        "size_bytes": checkpoint.size_bytes,
    }
    assert said[-2]["bytes_done"] == said[-2]["bytes_total"] > 0
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    state, expected = load_state_dict(tmp_path / "m@aaaa"), reference.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert dtype_of(checkpoint) == getattr(torch, dtype)
    build_skeleton(tmp_path / "m@aaaa", dtype=dtype_of(checkpoint)).bind(state)


def test_tensors_stand_in_execution_order(tmp_path: Path) -> None:
    # Its state dict names the final norm before the layers.
    convert(write_tiny_model(tmp_path / "source", "opt"), tmp_path / "m@aaaa")
    names = [entry.name for entry in open_at(tmp_path / "m@aaaa").manifest.tensors]
    first_layer = min(index for index, name in enumerate(names) if ".layers.0." in name)
    last_layer = max(index for index, name in enumerate(names) if ".layers." in name)
    norm = [index for index, name in enumerate(names) if "decoder.final_layer_norm" in name]
    assert names.index("model.decoder.embed_tokens.weight") < first_layer
    assert min(norm) > last_layer


def test_converting_again_is_success(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "llama")
    first, second = (convert(source, tmp_path / "m@aaaa") for _ in range(2))
    assert first[0] == second[0] == 0
    assert first[1][-1] == second[1][-1]


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_weights_are_never_made_up(tmp_path: Path, damage: str) -> None:
    source = write_tiny_model(tmp_path / "source", "llama")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    status, said = convert(source, tmp_path / "m@aaaa")
    assert (status, said[-1]["error"]) == (1, "source_corrupt")
    assert "up_proj" in said[-1]["message"]
    assert not (tmp_path / "m@aaaa").exists()
    assert not list(tmp_path.glob(".m@aaaa*"))


def test_remote_code_is_refused(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "evil.Config"}}))
    (source / "evil.py").write_text("raise SystemExit('ran')")
    status, said = convert(source, tmp_path / "m@aaaa")
    assert (status, said[-1]["error"]) == (1, "source_unsupported")


def test_gguf_becomes_a_whole_model() -> None:
    directory = smollm2_checkpoint()
    config = json.loads((directory / "config.json").read_text())
    assert require_supported(config) == "llama"
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & set(settings)
    rendered = text_of(chat_ids("Hello"))
    assert rendered.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer().eos_token == "<|im_end|>"  # type: ignore[attr-defined]
    assert open_at(directory).manifest.aliases == {"lm_head.weight": "model.embed_tokens.weight"}

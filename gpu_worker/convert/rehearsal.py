"""One plan of a model of nothing, so that what torch and transformers do at their first use is done."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gpu_worker.convert.planning import plan
from native_loader.dtypes import dtype_name


def rehearse() -> None:
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    entries, end = {}, 0
    for name, tensor in model.state_dict().items():
        span = [end, end + tensor.nbytes]
        entries[name] = {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": span}
        end = span[1]
    header = json.dumps(entries).encode()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config.save_pretrained(folder)
        weights = len(header).to_bytes(8, "little") + header + bytes(end)
        (folder / "model.safetensors").write_bytes(weights)
        plan(folder, dtype="bfloat16", model="rehearsal", revision="none")

"""A checkpoint of ours as an ordinary Hugging Face directory, for peers to load: the same weights."""

from __future__ import annotations

import json
from pathlib import Path


def export(checkpoint: Path, exported: Path) -> None:
    """safetensors, config, tokenizer. Once: what stands there already is left as it is."""
    if (exported / "model.safetensors").exists():
        return
    from safetensors.torch import save_file

    from native_loader import load_state_dict, open_checkpoint

    exported.mkdir(parents=True, exist_ok=True)
    for name, body in open_checkpoint(checkpoint).files().items():
        (exported / name).write_bytes(body)
    _name_architecture(exported / "config.json")
    unique: dict[int, str] = {}
    tensors = {}
    for name, tensor in load_state_dict(checkpoint).items():
        # safetensors refuses shared memory: a tied weight is saved once and tied again by transformers.
        if unique.setdefault(tensor.data_ptr(), name) == name:
            tensors[name] = tensor
    save_file(tensors, exported / "model.safetensors.new", metadata={"format": "pt"})
    (exported / "model.safetensors.new").rename(exported / "model.safetensors")


def _name_architecture(config_file: Path) -> None:
    """Peers look the class up by its name, which a configuration made from GGUF does not hold."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads(config_file.read_text())
    if not config.get("architectures"):
        described = AutoConfig.from_pretrained(config_file.parent, local_files_only=True)
        config["architectures"] = [AutoModelForCausalLM._model_mapping[type(described)].__name__]
        config_file.write_text(json.dumps(config, indent=2))

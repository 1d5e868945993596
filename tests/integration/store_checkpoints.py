"""Small checkpoints in our own format, put straight into an SSD cache."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

from native_loader import save_checkpoint


def write_safetensors(path: Path, *, size_bytes: int, seed: int) -> None:
    """One float32 tensor of reproducible bytes."""
    data = random.Random(seed).randbytes(size_bytes // 4 * 4)
    entry = {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def write_source(directory: Path, *, size_bytes: int, seed: int = 1) -> Path:
    """A folder with config, tokenizer and weights."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    (directory / "tokenizer.json").write_text("{}")
    write_safetensors(directory / "model.safetensors", size_bytes=size_bytes, seed=seed)
    return directory


def put_checkpoint(ssd_root: Path, checkpoint_id: str, *, size_bytes: int, seed: int = 1) -> Path:
    """Write a checkpoint where a store finds it at its next start."""
    scratch = ssd_root.parent / f"source-{checkpoint_id}"
    target = ssd_root / "checkpoints" / checkpoint_id
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(write_source(scratch, size_bytes=size_bytes, seed=seed), target)
    return target

"""One whole platform per test session, on ports of its own; and small models with a tokenizer to deploy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.platform import Platform
from tests.integration.api_model import text_files
from tests.integration.tiny_models import add_pooling, write_tiny_model


@contextmanager
def running_platform(directory: Path, **env: str) -> Iterator[Platform]:
    settings = {
        "FIRSTLIGHT_GPUS_PER_HOST": "2",
        "FIRSTLIGHT_DRAM_CAPACITY_BYTES": str(1 << 30),
        "FIRSTLIGHT_SSD_CAPACITY_BYTES": str(4 << 30),
        **env,
    }
    with Platform(directory / "state", env=settings) as platform:
        yield platform


def tiny_embedder(directory: Path) -> Path:
    """A random Qwen3 that only embeds: by its last token, which its tokenizer's settings append."""
    files = text_files()
    vocabulary = Tokenizer.from_str(files["tokenizer.json"].decode()).get_vocab_size()
    write_tiny_model(directory, "qwen3", has_head=False, vocab_size=vocabulary)
    add_pooling(directory, "lasttoken", normalizes=True)
    (directory / "tokenizer.json").write_bytes(files["tokenizer.json"])
    settings = {**json.loads(files["tokenizer_config.json"]), "add_eos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def tiny_source(directory: Path, *, seed: int = 0, context: int = 512, width: int = 128) -> Path:
    """A Hugging Face directory of a random llama with a real tokenizer and chat template.

    It names no end token: what ends a chat is its tokenizer's, one of 321. `width` is of its feed-forward
    layers: what makes it as large as a test needs, by 1.5 KB each.
    """
    directory.mkdir(parents=True)
    files = text_files()
    vocabulary = Tokenizer.from_str(files["tokenizer.json"].decode()).get_vocab_size()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes(files[name])
    return directory

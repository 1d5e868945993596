"""The example of a transformers script runs as it stands, on others' files and on a checkpoint of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import native_loader
from native_loader import load_into, load_state_dict, save_checkpoint

EXAMPLE = Path(native_loader.__file__).parents[1] / "examples" / "load_a_model.py"
WORDS = ["<unk>", "The", "capital", "of", "France", "is", *(f"word{index}" for index in range(40))]


def make_model(folder: Path, *, tied: bool) -> LlamaForCausalLM:
    """Sharded safetensors with a tokenizer, as a hub would give it."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size="30KB")
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="<unk>").save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model


def run_example(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(folder)],
        env=dict(os.environ, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_says_what_the_model_says(tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "model", tmp_path / "checkpoint"
    model = make_model(folder, tied=True)
    prompt = torch.tensor([[WORDS.index(word) for word in ["The", "capital", "of", "France", "is"]]])
    tokens = model.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()  # type: ignore[operator]
    expected = " ".join(WORDS[token] for token in tokens)
    assert run_example(folder) == expected
    save_checkpoint(folder, checkpoint)
    assert run_example(checkpoint) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_is_loaded_in_place(tmp_path: Path, tied: bool) -> None:
    """`load_into` takes published shards, in which a tied head is not stored."""
    model = make_model(tmp_path, tied=tied)
    other = AutoModelForCausalLM.from_config(model.config).eval()
    load_into(other, tmp_path)
    ids = torch.arange(len(WORDS))[None]
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied


def test_nothing_is_copied_on_the_way_into_a_model(tmp_path: Path) -> None:
    model = make_model(tmp_path, tied=False)
    state = load_state_dict(tmp_path)
    places = {name: tensor.data_ptr() for name, tensor in state.items()}
    bound = LlamaForCausalLM.from_pretrained(None, config=model.config, state_dict=state)
    assert {name: parameter.data_ptr() for name, parameter in bound.named_parameters()} == places

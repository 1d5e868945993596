"""A small model's text files, real ones: a byte-level tokenizer, a chat template, a context length."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from api.text.model_text import ModelText
from firstlight.domain.embedding import EMBEDDING_FILE, Embedding, Pooling, embedding_json

CONTEXT = 512
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = ["The quick brown fox jumps over the lazy dog.", "Ünïcödé, 日本語 and 🙂 too."]


@cache
def text_files() -> dict[str, bytes]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"])
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"eos_token": "<|end|>"}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
        "config.json": json.dumps({"max_position_embeddings": CONTEXT}).encode(),
    }


def embedding_file(*, size: int, generates: bool = False) -> dict[str, bytes]:
    """What makes a model of these files one that embeds."""
    kept = Embedding(pooling=Pooling.MEAN, normalizes=False, size=size, generates=generates)
    return {EMBEDDING_FILE: embedding_json(kept)}


@cache
def model_text() -> ModelText:
    return ModelText(text_files())


def ids_of(text: str) -> list[int]:
    return model_text().encode(text, add_special_tokens=False)

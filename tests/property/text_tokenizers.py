"""Small real tokenizers of the kinds models ship, built in memory."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Привет, мир! Как дела? Съешь ещё этих мягких французских булок.",
    "日本語のテキストと 中文文本 mixed with English words 🙂🙃🚀 and émigré naïveté.",
    "def add(a, b):\n    return a + b  # sums\n\n\tprint('x' * 3)",
]


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<|end|>", "<|user|>"])
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    return tokenizer


@cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _marked(tokenizer)


@cache
def byte_fallback() -> Tokenizer:
    """As SentencePiece models of the Llama family: U+2581 for spaces, `<0xNN>` for unknown letters."""
    words = ["<unk>", *(f"<0x{value:02X}>" for value in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyzTé,.!", "▁the", "▁dog", "▁a", "▁▁", "ing", "\ufffd"]
    vocabulary = {word: rank for rank, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _marked(tokenizer)


@cache
def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=180, unk_token="<unk>", special_tokens=["<unk>"])
    trainer.show_progress = False
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _marked(tokenizer)


@cache
def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _marked(tokenizer)


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "word_piece": word_piece,
}

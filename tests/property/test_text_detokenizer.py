"""Law: the pieces of a stream, put together, are what decoding all ids at once gives."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import KINDS

from api.text.model_text import ModelText


@cache
def text_of(kind: str) -> ModelText:
    return ModelText({"tokenizer.json": KINDS[kind]().to_str().encode()})


def streamed(text: ModelText, ids: list[int]) -> list[str]:
    detokenizer = text.detokenizer()
    return [*(detokenizer.feed(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_put_together_are_the_full_decode(kind: str, data: st.DataObject) -> None:
    text = text_of(kind)
    # Ids beyond the vocabulary too: models pad theirs.
    ids = data.draw(st.lists(st.integers(0, text.vocabulary_size + 3), max_size=40))
    assert "".join(streamed(text, ids)) == text.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=150, deadline=None)
@given(sentence=st.text(min_size=1, max_size=40))
def test_no_piece_of_a_real_text_shows_half_a_letter(kind: str, sentence: str) -> None:
    if "\ufffd" in sentence:
        return
    text = text_of(kind)
    pieces = streamed(text, text.encode(sentence, add_special_tokens=False))
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_out_as_soon_as_it_is_certain() -> None:
    text = text_of("byte_level")
    detokenizer = text.detokenizer()
    for token_id in text.encode("the dog", add_special_tokens=False):
        assert detokenizer.feed(token_id) != ""
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=100, deadline=None)
@given(sentence=st.text(max_size=30))
def test_the_bytes_of_tokens_put_together_are_the_text(kind: str, sentence: str) -> None:
    text = text_of(kind)
    ids = text.encode(sentence, add_special_tokens=False)
    data = b"".join(text.piece(token_id).data for token_id in ids)
    assert data.decode().strip(" ") == sentence.replace("▁", " ").strip(" ")

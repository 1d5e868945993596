"""Chat templates in their sandbox, and what is read from a checkpoint's files."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from api.text.chat_template import ChatTemplate, template_source
from api.text.limits import context_length_of
from api.text.model_text import ModelText
from firstlight.domain.errors import InvalidInput, SourceCorrupt
from tests.integration.api_model import text_files

USER = [{"role": "user", "content": "a < b & 'c'"}]


def render(source: str, **changes: object) -> str:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>"}).render(USER, **changes)  # type: ignore[arg-type]


def test_templates_have_the_names_that_hugging_face_gives_them() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{{ m | tojson }}{% break %}{% endfor %}"
        "{% if add_generation_prompt %}[go]{% endif %}{% if enable_thinking is defined %}[t]{% endif %}"
    )
    assert render(source) == "<s>a < b & 'c'" + json.dumps(USER[0]) + "[go]"
    assert render(source, add_generation_prompt=False, extra={"enable_thinking": False}).endswith("[t]")
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{{ {'b': 1, 'a': 'é'} | tojson(indent=1) }}") == '{\n "b": 1,\n "a": "é"\n}'


def test_an_end_token_is_appended_once_where_the_settings_say_so() -> None:
    files = text_files()
    settings = json.loads(files["tokenizer_config.json"])
    ending = ModelText(
        {**files, "tokenizer_config.json": json.dumps({**settings, "add_eos_token": True}).encode()}
    )
    plain = ModelText(files).encode_to_embed("The dog")
    (end,) = ending.end_token_ids
    assert ending.encode_to_embed("The dog") == [*plain, end]
    assert ending.encode_to_embed("The dog<|end|>") == [*plain, end]
    assert ModelText(files).embedding is None


def test_trailing_newlines_of_blocks_do_not_reach_the_prompt() -> None:
    assert render("{% if true %}\nx\n{% endif %}\ny") == "x\ny"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content }}{{ undefined_name.x }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 // 0 }}",
    ],
)
def test_what_a_template_refuses_is_the_callers_error(source: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        render(source)
    assert caught.value.fields["param"] == "messages"


def test_a_template_cannot_reach_the_process() -> None:
    escape = "{{ cycler.__init__.__globals__.os.environ }}"
    with pytest.raises(InvalidInput):
        render(escape)


def test_a_broken_template_is_the_checkpoints_fault() -> None:
    with pytest.raises(SourceCorrupt):
        render("{% if %}")


def test_templates_come_from_their_file_or_from_the_configuration() -> None:
    assert template_source({"chat_template.jinja": b"file"}, {"chat_template": "config"}) == "file"
    assert template_source({}, {"chat_template": "config"}) == "config"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    assert template_source({}, {"chat_template": named}) == "d"
    assert template_source({}, {}) is None


def test_context_lengths_are_found_where_models_keep_them() -> None:
    assert context_length_of({"max_position_embeddings": 2048}) == 2048
    assert context_length_of({"n_positions": 1024}) == 1024
    assert context_length_of({"text_config": {"max_position_embeddings": 8192}}) == 8192
    assert context_length_of({"model_type": "bloom"}) is None


def files(**more: bytes) -> dict[str, bytes]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: rank for rank, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return {"tokenizer.json": tokenizer.to_str().encode(), **more}


def test_special_tokens_may_be_written_as_text_or_object() -> None:
    for value in ("<end>", {"content": "<end>", "lstrip": False}):
        text = ModelText(files(**{"tokenizer_config.json": json.dumps({"eos_token": value}).encode()}))
        assert text.end_token_ids == (256,)


def test_files_that_are_wrong_say_which() -> None:
    with pytest.raises(SourceCorrupt, match=r"tokenizer\.json"):
        ModelText({})
    with pytest.raises(SourceCorrupt, match=r"tokenizer\.json"):
        ModelText({"tokenizer.json": b"{}"})
    with pytest.raises(SourceCorrupt, match=r"config\.json"):
        ModelText(files(**{"config.json": b"["}))


def test_without_a_template_chat_is_refused_and_half_letters_are_named() -> None:
    text = ModelText(files())
    with pytest.raises(InvalidInput, match="chat template"):
        text.encode_chat(USER)
    with pytest.raises(InvalidInput, match="Unicode"):
        text.encode("\ud800", add_special_tokens=False)

"""All that is known of one checkpoint's text: its tokenizer, chat template and context length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from api.text.chat_template import ChatTemplate, Message, template_source, tool_template_source
from api.text.detokenizer import Detokenizer
from api.text.limits import context_length_of
from api.text.token_bytes import byte_level_bytes, fallback_byte
from api.text.tool_formats import knows_tools, tool_format_of
from firstlight.domain.embedding import EMBEDDING_FILE, parse_embedding
from firstlight.domain.errors import InvalidInput, SourceCorrupt

# Beside the weights of a checkpoint; what is not in this list is never read or written here.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    EMBEDDING_FILE,
)


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token as log-probability lists show it: readable text, and the exact bytes."""

    text: str
    data: bytes


class ModelText:
    """Built once per checkpoint and shared by its requests; thread-safe after construction."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Raises: SourceCorrupt if there is no tokenizer.json or a file does not parse."""
        if "tokenizer.json" not in files:
            raise SourceCorrupt("the checkpoint has no tokenizer.json, so text cannot be served from it")
        try:
            self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the Rust binding raises bare Exception for a bad file
            raise SourceCorrupt(f"tokenizer.json does not parse: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        tokenizer_config = _json_file(files, "tokenizer_config.json")
        special = _special_tokens(tokenizer_config, _json_file(files, "special_tokens_map.json"))
        source = template_source(files, tokenizer_config)
        self._template = None if source is None else ChatTemplate(source, special_tokens=special)
        with_tools = tool_template_source(files, tokenizer_config)
        self._tool_template = self._template
        if with_tools is not None and with_tools != source:
            self._tool_template = ChatTemplate(with_tools, special_tokens=special)
        self.knows_tools = with_tools is not None and knows_tools(with_tools)
        self.tool_format = tool_format_of(with_tools or "") if self.knows_tools else None
        self.context_length = context_length_of(_json_file(files, "config.json"))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        self.vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._decoder_names = _decoder_names(self._tokenizer)
        end = special.get("eos_token")
        end_id = None if end is None else self._tokenizer.token_to_id(end)
        self.end_token_ids: tuple[int, ...] = () if end_id is None else (end_id,)
        # None for a model that only generates.
        self.embedding = parse_embedding(files[EMBEDDING_FILE]) if EMBEDDING_FILE in files else None
        self._adds_end = tokenizer_config.get("add_eos_token") is True

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Raises: InvalidInput for text that is not Unicode (half a surrogate pair)."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:
            # A str that the Rust side cannot take: half of a surrogate pair, which JSON lets through.
            raise InvalidInput("the text is not valid Unicode: it has half of a surrogate pair") from error
        return ids

    def encode_to_embed(self, text: str) -> list[int]:
        """With the special tokens that its vectors are made with. Raises: InvalidInput, as `encode`."""
        ids = self.encode(text, add_special_tokens=True)
        # transformers reads this setting; a tokenizer.json that was written without it knows nothing of it.
        if self._adds_end and ids[-1:] != list(self.end_token_ids):
            ids.extend(self.end_token_ids)
        return ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> list[int]:
        """Prompt ids of a conversation; the template itself writes the special tokens.

        Raises: InvalidInput if the model has no chat template or the template refuses the messages.
        """
        template = self._template if tools is None else self._tool_template
        if template is None:
            raise InvalidInput(
                "this model has no chat template; use /v1/completions with a prompt of your own",
                param="messages",
            )
        prompt = template.render(
            messages, add_generation_prompt=add_generation_prompt, extra=extra, tools=tools
        )
        return self.encode(prompt, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of all ids at once, special tokens left out."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def detokenizer(self) -> Detokenizer:
        """A new one for each stream."""
        return Detokenizer(self.decode, is_silent=self._is_silent, is_fallback_byte=self._is_fallback_byte)

    def piece(self, token_id: int) -> TokenPiece:
        """How one token reads by itself; an id outside the vocabulary is an empty piece."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return TokenPiece("", b"")
        if token_id in self._special_ids:
            return TokenPiece(token, token.encode("utf-8"))
        if "ByteLevel" in self._decoder_names:
            data = byte_level_bytes(token)
        elif "ByteFallback" in self._decoder_names and (one := fallback_byte(token)) is not None:
            data = one
        else:
            # SentencePiece writes a space as U+2581.
            data = token.replace("\u2581", " ").encode("utf-8")
        return TokenPiece(data.decode("utf-8", errors="replace"), data)

    def _is_silent(self, token_id: int) -> bool:
        return token_id in self._special_ids or self._tokenizer.id_to_token(token_id) is None

    def _is_fallback_byte(self, token_id: int) -> bool:
        if "ByteFallback" not in self._decoder_names:
            return False
        return fallback_byte(self._tokenizer.id_to_token(token_id) or "") is not None


def _json_file(files: Mapping[str, bytes], name: str) -> Mapping[str, object]:
    if name not in files:
        return {}
    try:
        content = json.loads(files[name])
    except ValueError as error:
        raise SourceCorrupt(f"{name} does not parse: {error}") from error
    if not isinstance(content, dict):
        raise SourceCorrupt(f"{name} is not a JSON object")
    return content


def _special_tokens(*sources: Mapping[str, object]) -> dict[str, str]:
    """`bos_token`, `eos_token` … by name; each is written as a string or as an object with `content`."""
    found: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            content = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(content, str):
                found.setdefault(name, content)
    return found


def _decoder_names(tokenizer: Tokenizer) -> frozenset[str]:
    if tokenizer.decoder is None:
        return frozenset()
    state = json.loads(tokenizer.decoder.__getstate__())
    parts = state.get("decoders", [state])
    return frozenset(part["type"] for part in parts)

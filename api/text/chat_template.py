"""Chat templates of checkpoints, rendered in a sandbox: a template is data from elsewhere, not our code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from firstlight.domain.errors import InvalidInput, SourceCorrupt

Message = Mapping[str, object]


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # Local time without a zone: templates print today's date for the model, as Hugging Face's do.
    return datetime.now().strftime(pattern)


# Any: the filter takes whatever value a template hands over.
def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja2's own filter: that one escapes <, > and & for HTML and would change the prompt.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class ChatTemplate:
    """One compiled template. Raises: SourceCorrupt when the checkpoint's template does not compile."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise SourceCorrupt(f"the model's chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """The prompt for `messages`. Raises: InvalidInput when the template refuses them."""
        names = {
            **self._special_tokens,
            **(extra or {}),
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
        }
        try:
            return self._template.render(names)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidInput(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def template_source(files: Mapping[str, bytes], tokenizer_config: Mapping[str, object]) -> str | None:
    """The checkpoint's chat template, if any: its own file, else the entry in tokenizer_config.json."""
    if (own := files.get("chat_template.jinja")) is not None:
        return own.decode("utf-8")
    entry = tokenizer_config.get("chat_template")
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list):
        named = {row["name"]: row["template"] for row in entry if isinstance(row, dict) and "name" in row}
        chosen = named.get("default")
        return chosen if isinstance(chosen, str) else None
    return None


def tool_template_source(files: Mapping[str, bytes], tokenizer_config: Mapping[str, object]) -> str | None:
    """The template for requests with tools, where the checkpoint has one of its own for them."""
    entry = tokenizer_config.get("chat_template")
    rows = entry if isinstance(entry, list) and "chat_template.jinja" not in files else []
    found = [row.get("template") for row in rows if isinstance(row, dict) and row.get("name") == "tool_use"]
    return found[0] if found and isinstance(found[0], str) else template_source(files, tokenizer_config)

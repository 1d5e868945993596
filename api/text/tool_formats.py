"""How models write calls of tools, told from their chat templates.

| notation | models | what is written |
|---|---|---|
| Hermes | Qwen 2.5 and 3, Hermes, SmolLM3 | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` a call |
| Mistral | to version 3 of its tokenizer | `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]` |
| Llama | 3.1, 3.2, 3.3 | `{"name": …, "parameters": {…}}` as the whole answer |
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import loopcontrols


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`opening` announces calls; with `may_open_bare`, an object that begins the answer is a call too."""

    name: str
    opening: str
    arguments_key: str
    closing: str = ""
    is_list: bool = False
    may_open_bare: bool = False
    id_letters: int = 0

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in (self.opening, self.closing) if marker)

    def new_id(self) -> str:
        """Of one call. Some templates insist on a length."""
        if self.id_letters:
            return secrets.token_hex(self.id_letters)[: self.id_letters]
        return f"call_{secrets.token_hex(12)}"


HERMES = ToolFormat("hermes", "<tool_call>", "arguments", closing="</tool_call>")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "arguments", is_list=True, id_letters=9)
LLAMA = ToolFormat("llama", "<|python_tag|>", "parameters", may_open_bare=True)
# Other notations that share a marker with one of the above.
_FOREIGN = ("<function=", "<arg_key>", "[ARGS]", "<|tool_call>")


def knows_tools(source: str) -> bool:
    """Does this template read the list of tools at all?"""
    try:
        parsed = Environment(  # noqa: S701 - never rendered
            extensions=[loopcontrols]
        ).parse(source.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    except TemplateError:
        return "tools" in source
    return "tools" in meta.find_undeclared_variables(parsed)


def tool_format_of(source: str) -> ToolFormat | None:
    """None: the notation is none of those known here."""
    if any(marker in source for marker in _FOREIGN):
        return None
    if HERMES.opening in source and HERMES.closing in source:
        return HERMES
    if MISTRAL.opening in source:
        return MISTRAL
    if '"parameters"' in source and ("ipython" in source or LLAMA.opening in source):
        return LLAMA
    return None

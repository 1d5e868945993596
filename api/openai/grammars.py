"""What a request allows to be generated, as grammars in llguidance's notation (JSON, or Lark inside it)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from api.openai.fields import Function, ResponseFormat
from api.text.tool_formats import HERMES, MISTRAL, ToolFormat
from firstlight.domain.errors import InvalidInput

# Between the parts of a JSON text: nothing, a space, or a new line and its indentation. Without a bound, a
# weak model goes on with spaces for ever.
_SPACES = r"( |\r?\n[ \t]{0,40})"
# Of one answer; a model that repeats itself must come to an end.
MOST_CALLS = 16


def response_grammar(wanted: ResponseFormat | None) -> str:
    """Of `response_format`; empty for text. Raises: InvalidInput for a schema that cannot be followed."""
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.json_schema is None:
        return _checked(json_grammar({"type": "object"}), param="response_format")
    schema = wanted.json_schema.schema_
    param = "response_format.json_schema.schema"
    return _checked(json_grammar({"type": "object"} if schema is None else schema, param=param), param=param)


# Any: a JSON Schema.
def json_grammar(schema: Mapping[str, Any], *, param: str = "") -> str:
    """Any JSON text that fits the schema."""
    return json.dumps({"grammars": [{"json_schema": json.loads(_schema(schema, param=param))}]})


def calls_grammar(
    form: ToolFormat, tools: Sequence[Function], *, token_of: Mapping[str, int], most: int
) -> str:
    """One to `most` calls of these tools and nothing else. Raises: InvalidInput.

    `token_of`: the markers of this notation that are special tokens.
    """
    rules = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{form.arguments_key}": ')
        param = f"tools[{index}].function.parameters"
        schema = _arguments_schema(tool, param=param)
        # By itself first: the error is then about the caller's schema, and not about our grammar around it.
        _checked(json.dumps({"grammars": [{"json_schema": json.loads(schema)}]}), param=param)
        rules += [f'call_{index}: {head} arguments_{index} "}}"', f"arguments_{index}: %json {schema}"]
    # Which tokens there are is known where the tokenizer is; all else is checked with their text.
    _checked(_around(form, rules, token_of={}, most=most), param="tools")
    return _around(form, rules, token_of=token_of, most=most)


def _around(form: ToolFormat, rules: Sequence[str], *, token_of: Mapping[str, int], most: int) -> str:
    opening, closing = (
        f"<[{token_of[marker]}]>" if marker in token_of else json.dumps(marker)
        for marker in (form.opening, form.closing)
    )
    more = f"{{0,{most - 1}}}"
    if form == HERMES:
        one = f'one: {opening} "\\n" call "\\n" {closing}'
        rules = [*rules, one, f'start: one ("\\n" one){more}' if most > 1 else "start: one"]
    elif form == MISTRAL:
        rest = f' (", " call){more}' if most > 1 else ""
        rules = [*rules, f'start: {opening} " "? "[" call{rest} "]"']
    else:
        rules = [*rules, "start: call"]
    return LLMatcher.grammar_from_lark("\n".join(rules))


def _arguments_schema(tool: Function, *, param: str) -> str:
    schema = tool.parameters or {"properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise InvalidInput("the parameters of a tool are those of an object", param=param)
    return _schema({**schema, "type": "object"}, param=param)


def _schema(schema: Mapping[str, Any], *, param: str) -> str:
    try:
        return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _SPACES}})
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the schema is nested too deeply: {error}", param=param) from error


def _checked(grammar: str, *, param: str) -> str:
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise InvalidInput(f"this schema cannot be followed: {messages[0][:300]}", param=param)
    return grammar

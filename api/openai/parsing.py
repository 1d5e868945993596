"""From the bytes of a body to a validated request, or an error that names the parameter at fault."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from firstlight.domain.errors import InvalidInput, UnsupportedParameter

Request = TypeVar("Request", bound=BaseModel)

# Parameters of OpenAI's that are not served, each with the values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
}
_MESSAGE_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "function_call": (None,),
    "refusal": (None,),
    "audio": (None,),
    "annotations": (None, []),
}


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises: InvalidInput."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput("the body must be a JSON object")
    return content


def parse_generation(kind: type[Request], body: bytes) -> Request:
    """A completion request. Raises: InvalidInput, UnsupportedParameter; both carry `param`."""
    content = parse_json(body)
    # What this endpoint serves is read by its fields.
    _drop_neutral(
        content,
        {name: neutral for name, neutral in _NEUTRAL.items() if name not in kind.model_fields},
        where="",
    )
    if "best_of" not in kind.model_fields:
        best_of = content.pop("best_of", None)
        if best_of is not None and best_of != (content.get("n") or 1):
            raise UnsupportedParameter("best_of is for /v1/completions", param="best_of")
    messages = content.get("messages")
    for position, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _check_message(message, position)
    return validate(kind, content)


def validate(kind: type[Request], content: Mapping[str, object]) -> Request:
    """Raises: InvalidInput or UnsupportedParameter for the first thing that is wrong."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # Of a union, pydantic tells what is wrong with each member; the last says most.
        first = error.errors(include_url=False, include_context=False)[0]
        param = _param_of(first["loc"])
        if first["type"] == "extra_forbidden":
            raise UnsupportedParameter(f"unknown parameter {param!r}", param=param) from error
        raise InvalidInput(f"{param}: {first['msg']}", param=param) from error


def _drop_neutral(content: dict[str, Any], neutral: Mapping[str, tuple[object, ...]], *, where: str) -> None:
    for name in [name for name in content if name in neutral]:
        if not any(content[name] == value for value in neutral[name]):
            raise UnsupportedParameter(f"{where}{name} is not served", param=f"{where}{name}")
        del content[name]


def _check_message(message: dict[str, Any], position: int) -> None:
    where = f"messages[{position}]"
    _drop_neutral(message, _MESSAGE_NEUTRAL, where=f"{where}.")
    if message.get("role") == "function":
        raise UnsupportedParameter("functions are not served, only tools", param=f"{where}.role")
    parts = message.get("content")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            raise UnsupportedParameter(
                f"content of type {str(part['type'])[:40]!r} is not served, only text",
                param=f"{where}.content",
            )


def _param_of(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content", "str")` → `messages[0].content`: names of union members left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        # A class of ours is a member of a union too.
        elif part.isidentifier() and part.islower() and part not in ("str", "int", "none"):
            path += f".{part}" if path else part
    return path

"""What OpenAPI says of routes that read their bodies and write their answers themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from api.openai.answers import ErrorAnswer

_MEANINGS = {
    400: "The request is malformed, not served, or does not fit the model's context.",
    401: "No API key, or one that is not known.",
    403: "The API key is for inference only.",
    404: "There is no such thing.",
    409: "It contradicts what is there.",
    413: "The body is too large.",
    429: "The model's queue is full, or the key is over its limit; Retry-After says when to come again.",
    500: "A bug.",
    503: "It cannot be started or reached now; Retry-After says when to come again.",
}


# Any: FastAPI's own type for this table.
def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documented error answers; 401 and 500 can come from anywhere."""
    return {
        status: {"model": ErrorAnswer, "description": _MEANINGS[status]}
        for status in sorted({*statuses, 401, 500})
    }


def body_of(kind: type[BaseModel], *, is_required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route whose handler parses this body by itself."""
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": is_required, "content": {"application/json": {"schema": schema}}}}


# Any: JSON Schema.
def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Nested models in their places: a reference would be looked up in the document, where they are not."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        schema = {**definitions[reference.rpartition("/")[2]], **schema}
        del schema["$ref"]
    return {name: _inlined(part, definitions) for name, part in schema.items()}


def events() -> dict[str, Any]:
    return {
        "description": "The answer, or with `stream` server-sent events that end in `data: [DONE]`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }

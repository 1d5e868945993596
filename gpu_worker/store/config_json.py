"""Flat frozen dataclasses to JSON text and back, with an answer for every wrong field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from firstlight.domain.errors import InvalidSettings

ConfigType = TypeVar("ConfigType")


def decode_object(text: str, *, what: str) -> dict[str, Any]:
    """Parse `text` as one JSON object. Raises: InvalidSettings."""
    try:
        value = json.loads(text)
    except ValueError as failure:
        raise InvalidSettings(f"{what} is not JSON: {failure}") from failure
    if not isinstance(value, dict):
        raise InvalidSettings(f"{what} must be a JSON object")
    return value


def build(kind: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Make a config of `kind`; unknown and missing fields are named. Raises: InvalidSettings."""
    # Any: dataclasses.fields is typed for instances of a protocol that a TypeVar cannot name.
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise InvalidSettings(f"{kind.__name__} has no field {', '.join(unknown)}")
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise InvalidSettings(f"{kind.__name__} lacks {', '.join(missing)}")
    return kind(**values)

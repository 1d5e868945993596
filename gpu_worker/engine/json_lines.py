"""JSON objects, one a line, over asyncio streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from firstlight.domain.errors import EngineGone

# A pin's reply lists one extent per partition; a config carries a few paths. Far below this.
LINE_LIMIT_BYTES = 1 << 20


# Any: a decoded JSON object is a wire boundary.
async def read_message(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next object, or None when the peer closed. Raises: EngineGone for what is no JSON object."""
    try:
        line = await reader.readline()
    except (ConnectionError, ValueError) as failure:
        raise EngineGone(f"control connection broke: {failure}") from failure
    if not line:
        return None
    try:
        message = json.loads(line)
    except ValueError as failure:
        raise EngineGone(f"control connection sent no JSON: {line[:80]!r}") from failure
    if not isinstance(message, dict):
        raise EngineGone(f"control connection sent no JSON object: {line[:80]!r}")
    return message


def write_message(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Queue one object; small, so that no drain is needed."""
    writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

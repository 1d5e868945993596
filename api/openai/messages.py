"""Messages of a request as chat templates know them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from api.openai.fields import CalledTool, ChatMessage, Tool
from firstlight.domain.errors import InvalidInput


# Any: JSON, as templates take it.
def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Raises: InvalidInput for a message whose parts do not go together."""
    return [_message(message, where=f"messages[{index}]") for index, message in enumerate(messages)]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """As Hugging Face's templates expect them: in OpenAI's own shape, nothing left out."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": tool.function.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def _message(message: ChatMessage, *, where: str) -> dict[str, Any]:
    if message.tool_calls and message.role != "assistant":
        raise InvalidInput("only the assistant calls tools", param=f"{where}.tool_calls")
    if (message.role == "tool") != (message.tool_call_id is not None):
        raise InvalidInput(
            "a message of a tool, and no other, has the tool_call_id it answers",
            param=f"{where}.tool_call_id",
        )
    content = message.content
    text = "\n".join(part.text for part in content) if isinstance(content, list) else content or ""
    # Templates know the older name of the developer's role.
    found: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text,
    }
    if message.name is not None:
        found["name"] = message.name
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [_call(call) for call in message.tool_calls]
    return found


def _call(call: CalledTool) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
    }


def _arguments(written: str) -> object:
    """Templates write the JSON themselves. What a model got wrong is handed back as it wrote it."""
    try:
        return json.loads(written) if written.strip() else {}
    except (ValueError, RecursionError):
        return written

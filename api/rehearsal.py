"""A first request that nobody waits for: what Python does once per process, it does before a client asks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from firstlight.domain.errors import FirstlightError

# Any: ASGI's own messages.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Router = Callable[[Message, Receive, Send], Awaitable[None]]

# No name of a model, so nothing is started.
NOBODY = "/"
PATHS = ("/v1/chat/completions", "/v1/completions")


async def rehearse(router: Router, app: object) -> None:
    """Send `router` one request a path, behind keys and counters: it is nobody's."""
    for path in PATHS:
        turn = {"role": "user", "content": "?"}
        prompt = {"messages": [turn]} if "chat" in path else {"prompt": "?"}
        try:
            await _send(router, app, path, json.dumps({"model": NOBODY, "stream": True, **prompt}).encode())
        except FirstlightError:
            # That there is no such model is the answer.
            continue


async def _send(router: Router, app: object, path: str, body: bytes) -> None:
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "app": app,
        "state": {"request_id": "rehearsal"},
    }
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(parts, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        """Nobody listens."""

    await router(scope, receive, send)

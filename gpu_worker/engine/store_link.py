"""The engine's end of the store's Unix socket: the arena's memory, and pins that last as long as the link."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.domain.errors import EngineGone, FirstlightError, error_type
from gpu_worker.engine.json_lines import LINE_LIMIT_BYTES, read_message, write_message
from native_loader import ArenaView


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """Where a checkpoint is: an (offset, size_bytes) of the arena per partition; its files in `directory`."""

    extents: tuple[tuple[int, int], ...]
    directory: Path
    manifest_digest: str | None


class StoreLink:
    """One connection. `view` is the whole arena, read-only; `on_lost` is called when the store goes."""

    def __init__(self, view: ArenaView, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.view = view
        self._writer = writer
        self._replies: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._one_at_a_time = asyncio.Lock()
        self._is_lost = False
        self._listening = asyncio.get_running_loop().create_task(self._listen(reader))
        self.on_lost: Callable[[], None] = lambda: None

    @classmethod
    async def connect(cls, path: str) -> StoreLink:
        """Raises: EngineGone when the store is not there or says something else."""
        try:
            connection, view = await asyncio.to_thread(_receive_arena, path)
        except (OSError, ValueError, KeyError) as failure:
            raise EngineGone(f"no arena from the store at {path}: {failure}") from failure
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_LIMIT_BYTES)
        return cls(view, reader, writer)

    async def pin(self, checkpoint_id: str) -> Pinned:
        """Hold a resident checkpoint until the link ends. Raises: UnknownCheckpoint, EngineGone."""
        async with self._one_at_a_time:
            if self._is_lost:
                raise EngineGone("the store is gone")
            write_message(self._writer, {"pin": checkpoint_id})
            reply = await self._replies.get()
        if reply is None:
            raise EngineGone("the store went away")
        if "error" in reply:
            raise _refusal(reply)
        return Pinned(
            extents=tuple((int(one["offset"]), int(one["size_bytes"])) for one in reply["extents"]),
            directory=Path(reply["directory"]),
            manifest_digest=reply.get("manifest_digest"),
        )

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (reply := await read_message(reader)) is not None:
                self._replies.put_nowait(reply)
        except EngineGone:
            pass
        self._is_lost = True
        self._replies.put_nowait(None)
        self.on_lost()

    async def close(self) -> None:
        self._listening.cancel()
        self._writer.close()


def _receive_arena(path: str) -> tuple[socket.socket, ArenaView]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        line, descriptors, _, _ = socket.recv_fds(connection, LINE_LIMIT_BYTES, 1)
        try:
            while not line.endswith(b"\n"):
                if not (more := connection.recv(LINE_LIMIT_BYTES)):
                    raise ValueError("the store closed before it had introduced itself")
                line += more
            hello = json.loads(line)
            if len(descriptors) != 1:
                raise ValueError("the store sent no memory")
            view = ArenaView(descriptors[0], int(hello["arena_bytes"]))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    except BaseException:
        connection.close()
        raise
    connection.setblocking(False)
    return connection, view


# Any: a decoded JSON object.
def _refusal(reply: dict[str, Any]) -> FirstlightError:
    kind = error_type(str(reply["error"]))
    if kind.code == "manifest_invalid":
        return kind(str(reply.get("message")), rule=str(reply.get("rule", "malformed")))
    return kind(str(reply.get("message")))

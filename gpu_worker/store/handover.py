"""Hands the arena to readers on this host, and holds their pins for as long as they are connected.

JSON lines over a Unix socket. On connect the store sends, with the read-only arena descriptor attached:
    {"arena_bytes": N, "kind": "hugetlb"}
    -> {"pin": "m@r"}    <- {"pinned": "m@r", "extents": [{"offset", "size_bytes"}…], "directory": "/…"}
    -> {"unpin": "m@r"}  <- {"unpinned": "m@r"}
    any refusal          <- {"error": code, "message": sentence}
Lookup and pin are one step, so nothing a reader was told of can be evicted before it maps it. The pins of a
connection end with it: a reader that is killed leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from itertools import count
from pathlib import Path
from typing import Any

from firstlight.domain.errors import FirstlightError, InvalidInput
from gpu_worker.store.pool import Pool
from gpu_worker.store.ssd_cache import SsdCache

log = logging.getLogger("store.handover")

LINE_BYTES = 64 * 2**10


class Handover:
    """The listening socket and its readers. `arena_fd` must be read-only; it stays the caller's."""

    def __init__(self, *, pool: Pool, cache: SsdCache, arena_fd: int, arena_bytes: int, kind: str) -> None:
        self._pool = pool
        self._cache = cache
        self._arena_fd = arena_fd
        self._hello = json.dumps({"arena_bytes": arena_bytes, "kind": kind}).encode() + b"\n"
        self._readers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._path: Path | None = None

    def start(self, path: Path) -> None:
        """Listen at `path`, for this user only."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Through the umask, not chmod: between bind and chmod anyone could connect.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(64)
        listener.setblocking(False)
        self._listener, self._path = listener, path
        self._keep(asyncio.get_running_loop().create_task(self._accept(listener)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None and self._path is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    def _keep(self, task: asyncio.Task[None]) -> None:
        # The loop holds tasks weakly: one that nobody holds can vanish in the midst of its work.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            self._keep(loop.create_task(self._serve(connection, f"reader-{next(self._readers)}")))

    async def _serve(self, connection: socket.socket, reader: str) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            socket.send_fds(connection, [self._hello], [self._arena_fd])
            lines, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES)
            while line := await lines.readline():
                writer.write(json.dumps(self._answer(line, reader)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError) as failure:
            # A reader that was killed, or one that talks nonsense: either way it is gone.
            log.info("reader=%s left: %s", reader, failure)
        finally:
            if held := self._pool.drop_reader(reader):
                log.info("reader=%s gone, unpinned=%s", reader, ",".join(held))
            with contextlib.suppress(OSError):
                writer.close() if writer is not None else connection.close()

    # Any: decoded JSON from the socket, checked here.
    def _answer(self, line: bytes, reader: str) -> dict[str, Any]:
        try:
            request = json.loads(line)
            match request:
                case {"pin": str(checkpoint_id)}:
                    return self._pin(checkpoint_id, reader)
                case {"unpin": str(checkpoint_id)}:
                    self._pool.unpin(checkpoint_id, reader)
                    return {"unpinned": checkpoint_id}
            raise InvalidInput("expected {'pin': checkpoint} or {'unpin': checkpoint}")
        except FirstlightError as refusal:
            return {"error": refusal.code, "message": refusal.message}

    def _pin(self, checkpoint_id: str, reader: str) -> dict[str, Any]:
        cached = self._cache.get(checkpoint_id)
        extents = self._pool.pin(checkpoint_id, reader)
        return {
            "pinned": checkpoint_id,
            "extents": [{"offset": extent.offset, "size_bytes": extent.size_bytes} for extent in extents],
            "directory": str(cached.directory.absolute()),
            "manifest_digest": cached.manifest_digest,
        }

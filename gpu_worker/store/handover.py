"""Hands the arena to readers on this host, and holds their pins for as long as they are connected.

JSON lines over a Unix socket. On connect the store sends, with the read-only arena descriptor attached:
    {"arena_bytes": N, "kind": "hugetlb"}
    -> {"rehearsal": true} <- {"rehearsed": true}   nothing happens; later exchanges are faster
    -> {"pin": "m@r"}    <- {"pinned": "m@r", "extents": [{"offset", "size_bytes"}…], "directory": "/…"}
    -> {"pin": "m@r", "while_loading": true}
                         <- the same, once its bytes begin to come; "is_loading": true says that they still
                            do, with the descriptor of the load's ProgressBoard attached
    -> {"unpin": "m@r"}  <- {"unpinned": "m@r"}
    -> {"gpu_copy": …}, {"gpu_outcome": …}           see gpu_handover.py
    -> {"stream": "m@r"} <- {"streaming": "m@r", "ring": {"offset", "slots", "slot_bytes"}, "directory", …}
                            and a board, for what is larger than the arena: chunk i is in slot i modulo slots
    -> {"taken": n}      <- {"noted": n}: the first n chunks were copied, their slots may be filled anew
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
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from firstlight.domain.errors import Conflict, FirstlightError, InvalidInput, UnknownCheckpoint
from gpu_worker.store.gpu_handover import GpuHandover
from gpu_worker.store.landing import Arrival
from gpu_worker.store.pool import Pool
from gpu_worker.store.reach import Reach
from gpu_worker.store.ssd_cache import SsdCache
from gpu_worker.store.streams import Stream, Streams

log = logging.getLogger("store.handover")

LINE_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class _Answer:
    """One line, and descriptors that travel with it and are closed then. Any: JSON."""

    message: dict[str, Any]
    fds: tuple[int, ...] = ()

    def send(self, connection: socket.socket) -> None:
        """Raises: OSError when the reader does not take it: it asks one thing at a time, so it has room."""
        line = json.dumps(self.message).encode() + b"\n"
        try:
            if socket.send_fds(connection, [line], self.fds) != len(line):
                raise BlockingIOError("the reader takes nothing")
        finally:
            for fd in self.fds:
                os.close(fd)


class Handover:
    """The listening socket and its readers. `arena_fd` must be read-only; it stays the caller's."""

    def __init__(
        self,
        *,
        pool: Pool,
        cache: SsdCache,
        streams: Streams,
        reach: Reach,
        gpu: GpuHandover,
        arena_fd: int,
        arena_bytes: int,
        kind: str,
    ) -> None:
        self._gpu = gpu
        self._pool = pool
        self._cache = cache
        self._reach = reach
        self._streams = streams
        self._streaming: dict[str, Stream] = {}
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
            await self._converse(connection, lines, reader)
        except (OSError, ValueError) as failure:
            # A reader that was killed, or one that talks nonsense: either way it is gone.
            log.info("reader=%s left: %s", reader, failure)
        finally:
            if (stream := self._streaming.pop(reader, None)) is not None:
                stream.ring.leave()
            # Before its pins go: a copy still reads what they hold.
            await self._gpu.drop_reader(reader)
            if held := self._pool.drop_reader(reader):
                log.info("reader=%s gone, unpinned=%s", reader, ",".join(held))
            with contextlib.suppress(OSError):
                writer.close() if writer is not None else connection.close()

    async def _converse(self, connection: socket.socket, lines: asyncio.StreamReader, reader: str) -> None:
        line = await lines.readline()
        while line:
            if (answer := self._at_once(line, reader)) is not None:
                answer.send(connection)
                line = await lines.readline()
                continue
            # Read on while an answer is waited for: a reader that is killed meanwhile must not hold a pin.
            following = asyncio.ensure_future(lines.readline())
            answering = asyncio.ensure_future(self._answer(line, reader))
            try:
                await asyncio.wait({following, answering}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done() and not following.result():
                    return
                (await answering).send(connection)
                line = await following
            finally:
                await _ended(following, answering)

    def _at_once(self, line: bytes, reader: str) -> _Answer | None:
        """What needs no waiting: a pin of what is resident is part of every warm start. None for the rest."""
        try:
            match json.loads(line):
                case {"pin": str(checkpoint_id), **rest} if not rest:
                    return self._pin(checkpoint_id, reader, None)
                case {"rehearsal": True}:
                    return _Answer({"rehearsed": True})
        except FirstlightError as refusal:
            return _refused(refusal)
        return None

    async def _answer(self, line: bytes, reader: str) -> _Answer:
        try:
            # Any: decoded JSON from the socket, checked here.
            match json.loads(line):
                case {"pin": str(checkpoint_id), "while_loading": True}:
                    return await self._pin_early(checkpoint_id, reader)
                case {"unpin": str(checkpoint_id)}:
                    self._pool.unpin(checkpoint_id, reader)
                    return _Answer({"unpinned": checkpoint_id})
                case {"stream": str(checkpoint_id)}:
                    return await self._stream(checkpoint_id, reader)
                case {"taken": int(chunks)}:
                    return await self._taken(chunks, reader)
                case {"gpu_copy": _} | {"gpu_outcome": _} as request:
                    answer = self._gpu.answer(request, reader=reader, pool=self._pool, reach=self._reach)
                    return _Answer(*await answer)
            raise InvalidInput("expected {'pin': checkpoint} or {'unpin': checkpoint}")
        except FirstlightError as refusal:
            return _refused(refusal)

    async def _pin_early(self, checkpoint_id: str, reader: str) -> _Answer:
        arrival = await self._reach.reach(checkpoint_id)
        return self._pin(checkpoint_id, reader, arrival)

    def _pin(self, checkpoint_id: str, reader: str, arrival: Arrival | None) -> _Answer:
        # It may have come, or failed, between the word of it and this line.
        if arrival is not None and not self._pool.is_loading(checkpoint_id):
            arrival = None
        directory, digest = self._whereabouts(checkpoint_id, arrival)
        extents = self._pool.pin(checkpoint_id, reader, while_loading=arrival is not None)
        reply = {
            "pinned": checkpoint_id,
            "extents": [{"offset": extent.offset, "size_bytes": extent.size_bytes} for extent in extents],
            "directory": str(directory.absolute()),
            "manifest_digest": digest or None,
        }
        if arrival is None:
            return _Answer(reply)
        return _Answer({**reply, "is_loading": True}, (arrival.board.read_only_fd(),))

    async def _stream(self, checkpoint_id: str, reader: str) -> _Answer:
        if reader in self._streaming:
            raise Conflict("this reader has a stream already")
        stream = await self._streams.begin(checkpoint_id)
        self._streaming[reader] = stream
        ring = stream.ring
        reply = {
            "streaming": checkpoint_id,
            "ring": {"offset": ring.extent.offset, "slots": ring.slots, "slot_bytes": ring.slot_bytes},
            "directory": str(stream.cached.directory.absolute()),
            "manifest_digest": stream.cached.manifest_digest or None,
        }
        return _Answer(reply, (ring.board.read_only_fd(),))

    async def _taken(self, chunks: int, reader: str) -> _Answer:
        """Raises: what ended the stream; Conflict without one."""
        if (stream := self._streaming.get(reader)) is None:
            raise Conflict("this reader has no stream")
        ring = stream.ring
        ring.take(chunks)
        if ring.board.has_failed or chunks >= ring.board.chunks:
            del self._streaming[reader]
            await stream.task
        return _Answer({"noted": chunks})

    def _whereabouts(self, checkpoint_id: str, arrival: Arrival | None) -> tuple[Path, str]:
        """Where its small files are, and its digest when that is known. Raises: UnknownCheckpoint."""
        # Looked for on SSD first: an arrival's own folder is gone once it has been published.
        if (cached := self._cache.find(checkpoint_id)) is not None:
            return cached.directory, cached.manifest_digest
        if arrival is None and (arrival := self._reach.landed(checkpoint_id)) is None:
            raise UnknownCheckpoint(f"this host does not hold {checkpoint_id}", checkpoint_id=checkpoint_id)
        return arrival.directory, arrival.manifest_digest


def _refused(refusal: FirstlightError) -> _Answer:
    return _Answer({"error": refusal.code, "message": refusal.message})


# Any: what the tasks' coroutines yield is asyncio's own affair.
async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Until all of them have; those that have not are cancelled, and nothing they say is lost track of."""
    for task in tasks:
        if not task.done():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""The engine's end of the store's Unix socket: the arena's memory, and pins that last as long as the link."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.domain.errors import EngineGone, FirstlightError, InvalidInput, error_type
from gpu_worker.engine.json_lines import LINE_LIMIT_BYTES
from native_loader import ArenaView, ProgressBoard

# A reply carries at most the one descriptor of a load's board.
_MOST_DESCRIPTORS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """Where a checkpoint is: an (offset, size_bytes) of the arena per partition; its files in `directory`.

    `board` tells which of its bytes are there; None when all are.
    """

    extents: tuple[tuple[int, int], ...]
    directory: Path
    manifest_digest: str | None
    board: ProgressBoard | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoan:
    """Memory for one partition on the GPU with this uuid, by the driver's handle, for the store to fill."""

    gpu: str
    handle: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """What comes through a ring of the arena: chunk i is in slot i modulo `slots` once `board` says so."""

    offset: int
    slots: int
    slot_bytes: int
    directory: Path
    manifest_digest: str | None
    board: ProgressBoard


@dataclass(frozen=True, slots=True)
class _Reply:
    # Any: a decoded JSON object.
    message: dict[str, Any]
    fd: int | None


class StoreLink:
    """One connection. `view` is the whole arena, read-only; `on_lost` is called when the store goes."""

    def __init__(self, view: ArenaView, connection: socket.socket) -> None:
        self.view = view
        self.is_lost = False
        self.on_lost: Callable[[], None] = lambda: None
        self._connection = connection
        self._replies: asyncio.Queue[_Reply | None] = asyncio.Queue()
        self._one_at_a_time = asyncio.Lock()
        self._received = b""
        self._descriptors: deque[int] = deque()
        self._loop = asyncio.get_running_loop()
        # Not a stream: asyncio's would drop the descriptors that come with a line.
        self._loop.add_reader(connection, self._receive)

    @classmethod
    async def connect(cls, path: str) -> StoreLink:
        """Raises: EngineGone when the store is not there or says something else."""
        try:
            connection, view = await asyncio.to_thread(_receive_arena, path)
        except (OSError, ValueError, KeyError) as failure:
            raise EngineGone(f"no arena from the store at {path}: {failure}") from failure
        link = cls(view, connection)
        # The first exchange takes longer than any later one, and the next is part of a start. A store of an
        # earlier release, which an upgrade in place may leave running, refuses it and is none the worse.
        with suppress(InvalidInput):
            await link._ask({"rehearsal": True})
        return link

    async def pin(self, checkpoint_id: str, *, while_loading: bool = False) -> Pinned:
        """Hold a checkpoint until the link ends: a resident one, or also one that is on its way.

        Raises: UnknownCheckpoint, EngineGone, and why its load failed.
        """
        request: dict[str, Any] = {"pin": checkpoint_id}
        if while_loading:
            request["while_loading"] = True
        reply = await self._ask(request)
        message = reply.message
        return Pinned(
            extents=tuple((int(one["offset"]), int(one["size_bytes"])) for one in message["extents"]),
            directory=Path(message["directory"]),
            manifest_digest=message.get("manifest_digest"),
            board=_attached(reply.fd) if message.get("is_loading") else None,
        )

    async def stream(self, checkpoint_id: str) -> Streaming:
        """Have a checkpoint that is larger than the arena sent through it; `taken` makes it go on.

        Raises: UnknownCheckpoint, PoolFull, CheckpointError, EngineGone.
        """
        reply = await self._ask({"stream": checkpoint_id})
        ring = reply.message["ring"]
        return Streaming(
            offset=int(ring["offset"]),
            slots=int(ring["slots"]),
            slot_bytes=int(ring["slot_bytes"]),
            directory=Path(reply.message["directory"]),
            manifest_digest=reply.message.get("manifest_digest"),
            board=_attached(reply.fd),
        )

    async def taken(self, chunks: int) -> None:
        """The first `chunks` of the stream were copied. Raises: what ended the stream, EngineGone."""
        await self._ask({"taken": chunks})

    async def copy_to_gpu(
        self, checkpoint_id: str, loans: Sequence[GpuLoan], *, chunk_bytes: int
    ) -> ProgressBoard:
        """Have a pinned checkpoint copied to `loans`, one a partition; the board tells what has arrived.

        Raises: GpuError when the store cannot, EngineGone.
        """
        targets = [{"gpu": loan.gpu, "handle": loan.handle.hex()} for loan in loans]
        reply = await self._ask({"gpu_copy": checkpoint_id, "chunk_bytes": chunk_bytes, "targets": targets})
        return _attached(reply.fd)

    # Any: the figures of a JSON object.
    async def gpu_outcome(self, checkpoint_id: str) -> dict[str, Any]:
        """Wait for the end of that copy: how the bytes went. The store holds none of the memory then.

        Raises: why it failed, EngineGone.
        """
        return (await self._ask({"gpu_outcome": checkpoint_id})).message

    async def close(self) -> None:
        self._loop.remove_reader(self._connection)
        self._connection.close()

    # Any: JSON objects.
    async def _ask(self, request: dict[str, Any]) -> _Reply:
        async with self._one_at_a_time:
            if self.is_lost:
                raise EngineGone("the store is gone")
            try:
                await self._loop.sock_sendall(self._connection, json.dumps(request).encode() + b"\n")
            except OSError as failure:
                raise EngineGone(f"the store went away: {failure}") from failure
            reply = await self._replies.get()
        if reply is None:
            raise EngineGone("the store went away")
        if "error" in reply.message:
            raise _refusal(reply.message)
        return reply

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._connection, LINE_LIMIT_BYTES, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._descriptors.extend(descriptors)
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        try:
            replies = [self._decoded(line) for line in lines]
        except (ValueError, IndexError):
            replies, data = [], b""
        for reply in replies:
            self._replies.put_nowait(reply)
        if not data or len(self._received) > LINE_LIMIT_BYTES:
            self._lose()

    def _decoded(self, line: bytes) -> _Reply:
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"the store sent no JSON object: {line[:80]!r}")
        has_board = bool(message.get("is_loading")) or "gpu_copying" in message or "streaming" in message
        return _Reply(message, self._descriptors.popleft() if has_board else None)

    def _lose(self) -> None:
        self.is_lost = True
        self._loop.remove_reader(self._connection)
        self._replies.put_nowait(None)
        self.on_lost()


def _attached(fd: int | None) -> ProgressBoard:
    assert fd is not None, "what is loading comes with its board"
    try:
        return ProgressBoard.attach(fd)
    finally:
        os.close(fd)


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

"""Gives checkpoints to other hosts' stores: a plain HTTP/1.1 range server over the DRAM arena and the SSD.

    GET /v1/checkpoints/<id>           {"manifest_digest", "tier", "files": [{"name", "size_bytes"}…]}
    GET /v1/checkpoints/<id>/<name>    manifest.json, partition-N.bin or a small file; one byte range at most
    POST /v1/checkpoints/<id>          what came of it was wrong, twice: 202, and this store looks for itself
    Authorization: Bearer <secret>     where a secret is set
    If-Match: "<manifest digest>"      412 when this store holds other bytes under the id

The event loop accepts and looks up; a thread a connection sends, straight from the arena or by sendfile, with
the interpreter let go. What is being sent is pinned, and a peer that stops reading loses its pin in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from itertools import count
from typing import TypeVar

from firstlight.domain.errors import InvalidSettings, UnknownCheckpoint
from gpu_worker.store.peer_http import (
    HEAD_END,
    LONGEST_HEAD_BYTES,
    PeerRequest,
    Refused,
    answer_head,
    asked_range,
    parse_request,
)
from gpu_worker.store.peer_shelf import Lent, PeerShelf

log = logging.getLogger("store.peers")

# More would only share the link; one beyond is told to come again.
CONNECTIONS_AT_MOST = 32
# How long a peer may say nothing, or take nothing of what it asked for.
SILENCE_S = 20.0
PIECE_BYTES = 4 * 2**20
Answer = TypeVar("Answer")


class PeerServer:
    """Raises InvalidSettings when it would be open to a network without a secret."""

    def __init__(
        self,
        shelf: PeerShelf,
        *,
        on_doubt: Callable[[str], None],
        bind_address: str,
        port: int,
        secret: str | None,
    ) -> None:
        """`on_doubt` is told, on the event loop, which checkpoint another store doubts."""
        if secret is None and not is_loopback(bind_address):
            raise InvalidSettings(
                f"stores may not give checkpoints away at {bind_address} without a shared secret",
                setting="FIRSTLIGHT_PEER_SECRET",
            )
        self._shelf = shelf
        self._on_doubt = on_doubt
        self._bind = (bind_address, port)
        self._expected = f"Bearer {secret}".encode() if secret is not None else None
        self._names = count(1)
        self._open: set[socket.socket] = set()
        self._threads = ThreadPoolExecutor(CONNECTIONS_AT_MOST, thread_name_prefix="peer")
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> str:
        """Listen; answers host:port. Raises: InvalidSettings."""
        self._loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._bind[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self._bind)
        except OSError as failure:
            listener.close()
            raise InvalidSettings(f"peers cannot be served at {self._bind}: {failure.strerror}") from failure
        listener.listen(64)
        listener.setblocking(False)
        self._listener = listener
        self._accepting = self._loop.create_task(self._accept(listener))
        host, port = listener.getsockname()[:2]
        return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"

    async def close(self) -> None:
        """Stop at once: whoever is being served finds another peer, or the source."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        # In a thread: the loop must run on, as those who send give back through it.
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError as failure:
                # Descriptors have run out, most likely: others end and give theirs back.
                log.warning("no peer can be taken: %s", failure)
                await asyncio.sleep(0.1)
                continue
            if len(self._open) >= CONNECTIONS_AT_MOST:
                _turn_away(connection)
                continue
            self._open.add(connection)
            self._loop.run_in_executor(self._threads, self._serve, connection, f"peer-{next(self._names)}")

    def _serve(self, connection: socket.socket, peer: str) -> None:
        """On a thread of its own, until the peer has gone."""
        try:
            with connection:
                connection.settimeout(SILENCE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                received = bytearray()
                while (head := _read_head(connection, received)) is not None:
                    if not self._answer(connection, head, peer):
                        return
        except OSError as failure:
            log.info("%s left: %s", peer, failure)
        finally:
            self._loop.call_soon_threadsafe(self._open.discard, connection)

    def _answer(self, connection: socket.socket, head: bytes, peer: str) -> bool:
        """One request; whether another may follow."""
        try:
            request = parse_request(head)
            self._check_secret(request)
            if request.method == "POST":
                log.warning("%s at %s doubts %s", peer, connection.getpeername()[0], request.checkpoint_id)
                self._on_loop(self._on_doubt, request.checkpoint_id)
                connection.sendall(answer_head(HTTPStatus.ACCEPTED, {"Content-Length": 0}))
            elif request.name:
                self._send_file(connection, request, peer)
            else:
                _send_json(connection, request, self._on_loop(self._shelf.listing, request.checkpoint_id))
            return request.keeps_alive
        except UnknownCheckpoint:
            _send_refusal(connection, HTTPStatus.NOT_FOUND)
            return True
        except Refused as refusal:
            if refusal.status is HTTPStatus.UNAUTHORIZED:
                log.warning("%s at %s showed no valid secret", peer, connection.getpeername()[0])
            _send_refusal(connection, refusal.status, closes=True)
            return False

    def _check_secret(self, request: PeerRequest) -> None:
        shown = request.headers.get("authorization", "").encode("latin-1")
        if self._expected is not None and not hmac.compare_digest(shown, self._expected):
            raise Refused(HTTPStatus.UNAUTHORIZED)

    def _send_file(self, connection: socket.socket, request: PeerRequest, peer: str) -> None:
        lent = self._on_loop(self._shelf.lend, request.checkpoint_id, request.name, peer)
        try:
            wanted = request.headers.get("if-match")
            if wanted is not None and wanted != f'"{lent.manifest_digest}"':
                raise Refused(HTTPStatus.PRECONDITION_FAILED)
            asked = asked_range(request, lent.size_bytes)
            start, end = asked or (0, lent.size_bytes)
            headers: dict[str, str | int] = {
                "Content-Length": end - start,
                "Content-Type": "application/octet-stream",
                "Accept-Ranges": "bytes",
                "ETag": f'"{lent.manifest_digest}"',
            }
            if asked is not None:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{lent.size_bytes}"
            status = HTTPStatus.OK if asked is None else HTTPStatus.PARTIAL_CONTENT
            connection.sendall(answer_head(status, headers))
            if request.method == "GET":
                _send_bytes(connection, lent, start, end)
        finally:
            if lent.fd >= 0:
                os.close(lent.fd)
            self._loop.call_soon_threadsafe(lent.give_back)

    def _on_loop(self, work: Callable[..., Answer], *arguments: str) -> Answer:
        """Do `work` on the event loop, which owns the books, and wait for it."""

        async def there() -> Answer:
            return work(*arguments)

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(SILENCE_S)


def is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _read_head(connection: socket.socket, received: bytearray) -> bytes | None:
    """The next request's head; None when the peer has closed. Raises: OSError, silence included."""
    while (end := received.find(HEAD_END)) < 0:
        if len(received) > LONGEST_HEAD_BYTES:
            raise OSError("a head that never ends")
        piece = connection.recv(LONGEST_HEAD_BYTES)
        if not piece:
            return None
        received += piece
    head = bytes(received[:end])
    del received[: end + len(HEAD_END)]
    return head


def _send_bytes(connection: socket.socket, lent: Lent, start: int, end: int) -> None:
    """In pieces: the time-out is for each of them."""
    for at in range(start, end, PIECE_BYTES):
        size_bytes = min(PIECE_BYTES, end - at)
        if lent.view is not None:
            connection.sendall(lent.view[at : at + size_bytes])
            continue
        with open(lent.fd, "rb", buffering=0, closefd=False) as file:
            if connection.sendfile(file, at, size_bytes) != size_bytes:
                raise OSError("the file ended before its size")
        # Read once: it must not push out of the page cache what others need.
        os.posix_fadvise(lent.fd, at, size_bytes, os.POSIX_FADV_DONTNEED)


def _send_json(connection: socket.socket, request: PeerRequest, document: dict[str, object]) -> None:
    body = json.dumps(document).encode()
    head = answer_head(HTTPStatus.OK, {"Content-Length": len(body), "Content-Type": "application/json"})
    connection.sendall(head + (body if request.method == "GET" else b""))


def _send_refusal(connection: socket.socket, status: HTTPStatus, *, closes: bool = False) -> None:
    headers: dict[str, str | int] = {"Content-Length": 0}
    if closes:
        headers["Connection"] = "close"
    connection.sendall(answer_head(status, headers))


def _turn_away(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(
            answer_head(
                HTTPStatus.SERVICE_UNAVAILABLE,
                {"Content-Length": 0, "Retry-After": 1, "Connection": "close"},
            )
        )

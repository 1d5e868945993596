"""Another host's store as a source: a checkpoint in our own format, by byte ranges, over plain HTTP.

Sockets of our own, in threads: what comes is received where it is wanted, with the interpreter let go. A peer
that fails once is given up at once, for there are others and the source.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from threading import Lock
from typing import Any
from urllib.parse import quote

import numpy as np

from firstlight.domain.errors import InvalidInput, PeerUnreachable, SourceCorrupt
from gpu_worker.store.peer_http import HEAD_END, LONGEST_HEAD_BYTES
from gpu_worker.store.sources.description import Layout, Source, SourceDescription, SourceFile
from gpu_worker.store.sources.layout import choose, safe_name, sizes_present

THREADS = 16
CONNECT_WITHIN_S = 2.0
SILENCE_S = 10.0
LARGEST_ANSWER_BYTES = 64 * 2**20
_ENDPOINT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z0-9:_-]{16,160}", re.ASCII)


class PeerClient:
    """Connections to other stores, kept for the next request. One a store; `close` it."""

    def __init__(self, *, secret: str | None) -> None:
        self._secret = secret
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="from-peer")
        self._idle: dict[str, list[socket.socket]] = defaultdict(list)
        self._lock = Lock()
        self._is_closed = False

    def open(self, endpoint: str, checkpoint_id: str) -> Source:
        """The checkpoint as the store at host:port has it. Raises: InvalidInput."""
        if not _ENDPOINT.fullmatch(endpoint):
            raise InvalidInput(f"a peer is host:port, not {endpoint[:80]!r}")
        return PeerSource(self, endpoint, checkpoint_id)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for connection in [one for row in self._idle.values() for one in row]:
                connection.close()
            self._idle.clear()
        self._threads.shutdown(cancel_futures=True)

    async def get(self, endpoint: str, path: str, headers: dict[str, str], into: memoryview | None) -> bytes:
        """Fill `into` with the answer's body, or return it when there is none. Raises: PeerUnreachable.

        When it returns or raises, cancelled too, nothing writes to `into` any more.
        """
        return await self._called(_Call(endpoint, path, headers, into))

    async def post(self, endpoint: str, path: str) -> None:
        """Raises: PeerUnreachable."""
        await self._called(_Call(endpoint, path, {}, None, method="POST"))

    async def _called(self, call: _Call) -> bytes:
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._get, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            call.stop()
            await asyncio.wait([work])
            # Looked at: whatever it ended with was our doing.
            if not work.cancelled():
                work.exception()
            raise

    def _get(self, call: _Call) -> bytes:
        connection, is_kept = self._connection(call.endpoint)
        try:
            try:
                found = self._exchange(connection, call)
            except (BrokenPipeError, ConnectionResetError, _Closed):
                if not is_kept:
                    raise
                # The peer may have grown tired of a connection that was idle, and be well.
                connection.close()
                connection = _connect(call.endpoint)
                found = self._exchange(connection, call)
        except (OSError, _Closed, ValueError) as failure:
            connection.close()
            raise PeerUnreachable(f"the store at {call.endpoint} ended the transfer: {failure}") from failure
        except BaseException:
            connection.close()
            raise
        self._keep(call.endpoint, connection)
        return found

    def _connection(self, endpoint: str) -> tuple[socket.socket, bool]:
        with self._lock:
            if self._idle[endpoint]:
                return self._idle[endpoint].pop(), True
        try:
            return _connect(endpoint), False
        except OSError as failure:
            raise PeerUnreachable(f"the store at {endpoint} does not answer: {failure}") from failure

    def _keep(self, endpoint: str, connection: socket.socket) -> None:
        with self._lock:
            if self._is_closed:
                connection.close()
            else:
                self._idle[endpoint].append(connection)

    def _exchange(self, connection: socket.socket, call: _Call) -> bytes:
        call.begin(connection)
        secret = {"Authorization": f"Bearer {self._secret}"} if self._secret is not None else {}
        lines = [f"{call.method} {call.path} HTTP/1.1", f"Host: {call.endpoint}"]
        lines += [f"{name}: {text}" for name, text in (secret | call.headers).items()]
        connection.sendall("\r\n".join(lines).encode("latin-1") + HEAD_END)
        status, length, early = _read_answer(connection)
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.ACCEPTED):
            raise PeerUnreachable(f"the store at {call.endpoint} refused: {status} {_phrase(status)}")
        if call.into is None:
            if length > LARGEST_ANSWER_BYTES:
                raise ValueError(f"{length} bytes were announced")
            body = bytearray(length)
            _receive(connection, memoryview(body), early)
            return bytes(body)
        if length != len(call.into):
            raise ValueError(f"{length} bytes came where {len(call.into)} were asked for")
        _receive(connection, call.into, early)
        return b""


class _Call:
    """One request, and how to stop it from another thread."""

    def __init__(
        self,
        endpoint: str,
        path: str,
        headers: dict[str, str],
        into: memoryview | None,
        *,
        method: str = "GET",
    ) -> None:
        self.method = method
        self.endpoint = endpoint
        self.path = path
        self.headers = headers
        self.into = into
        self._lock = Lock()
        self._connection: socket.socket | None = None
        self._is_stopped = False

    def begin(self, connection: socket.socket) -> None:
        """Raises: OSError when it was stopped before."""
        with self._lock:
            if self._is_stopped:
                raise OSError("it was stopped")
            self._connection = connection

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)


class PeerSource(Source):
    """One checkpoint of one peer. Every range is of the manifest that was described, or an error."""

    def __init__(self, client: PeerClient, endpoint: str, checkpoint_id: str) -> None:
        self._client = client
        self._endpoint = endpoint
        self._path = f"/v1/checkpoints/{quote(checkpoint_id, safe='@')}"
        self._headers: dict[str, str] = {}

    @property
    def reads_in_place(self) -> bool:
        return True

    async def describe(self) -> SourceDescription:
        text = await self._client.get(self._endpoint, self._path, {}, None)
        try:
            digest, sizes = _listing(json.loads(text))
        except (ValueError, KeyError, TypeError) as failure:
            raise SourceCorrupt(f"the store at {self._endpoint} lists nonsense: {failure!r}") from failure
        layout, wanted = choose(sorted(sizes), None)
        if layout is not Layout.CHECKPOINT:
            raise SourceCorrupt(f"the store at {self._endpoint} has no checkpoint there")
        sizes_present(wanted, sizes)
        self._headers = {"If-Match": f'"{digest}"'}
        # Of the bytes and not of the peer: what one peer has begun another can finish.
        revision = digest.rpartition(":")[2][:16]
        files = tuple(SourceFile(name, sizes[name], digest) for name in sorted(wanted))
        return SourceDescription(f"peer://{self._endpoint}", layout, revision, files)

    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        # Not zeroed first, as a bytearray would be.
        data = np.empty(size_bytes, dtype=np.uint8).data
        await self.read_into(file, start=start, into=data)
        return data

    async def read_into(self, file: SourceFile, *, start: int, into: memoryview) -> None:
        """Fill `into` from `start` of the file, without a copy between. Raises: PeerUnreachable."""
        if not into:
            return
        headers = self._headers | {"Range": f"bytes={start}-{start + len(into) - 1}"}
        path = f"{self._path}/{quote(safe_name(file.name))}"
        await self._client.get(self._endpoint, path, headers, into)

    async def doubt(self) -> None:
        with contextlib.suppress(PeerUnreachable):
            await self._client.post(self._endpoint, self._path)


class _Closed(Exception):
    """The peer closed the connection before its answer was whole."""


# Any: decoded JSON of another store, checked here.
def _listing(document: Any) -> tuple[str, dict[str, int]]:
    digest = str(document["manifest_digest"])
    if not _DIGEST.fullmatch(digest):
        raise ValueError("no digest")
    return digest, {str(row["name"]): int(row["size_bytes"]) for row in document["files"]}


def _connect(endpoint: str) -> socket.socket:
    found = _ENDPOINT.fullmatch(endpoint)
    assert found is not None, "it was checked when it was opened"
    address = (found[1] or found[2], int(found[3]))
    connection = socket.create_connection(address, timeout=CONNECT_WITHIN_S)
    connection.settimeout(SILENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _read_answer(connection: socket.socket) -> tuple[int, int, bytes]:
    """Status, length of the body, and what of it came with the head."""
    received = bytearray()
    while (end := received.find(HEAD_END)) < 0:
        if len(received) > LONGEST_HEAD_BYTES:
            raise ValueError("a head that never ends")
        piece = connection.recv(LONGEST_HEAD_BYTES)
        if not piece:
            raise _Closed("closed before an answer")
        received += piece
    first, *lines = bytes(received[:end]).decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)
    }
    length = int(headers["content-length"]) if "content-length" in headers else -1
    if length < 0:
        raise ValueError("an answer without a length")
    return int(first.split(" ")[1]), length, bytes(received[end + len(HEAD_END) :])


def _receive(connection: socket.socket, into: memoryview, early: bytes) -> None:
    if len(early) > len(into):
        raise ValueError("more came than was announced")
    into[: len(early)] = early
    at = len(early)
    while at < len(into):
        size_bytes = connection.recv_into(into[at:])
        if not size_bytes:
            raise _Closed(f"closed after {at} of {len(into)} bytes")
        at += size_bytes


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""

"""An event stream read from a socket by hand.

`http.client` takes 0.4 ms of a small machine to send a request and to parse an answer's headers.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 300.0


class Refused(Exception):
    """The answer was no event stream: its status and body."""


class PlainClient:
    """One connection to `url`'s server, kept alive; a request that finds it closed is sent on a new one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self.connect()

    def connect(self) -> None:
        """A fresh connection, whatever has become of the last."""
        self._socket = socket.create_connection(self._address, timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    # Any: a JSON body.
    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[bytes]:
        """Data of the answer's events, as they come. To be read to its end. Raises: Refused, OSError."""
        data = json.dumps(body).encode()
        host, port = self._address
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        status = self._send(head.encode() + data)
        length = 0
        while (line := self._answers.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if status != 200:
            raise Refused(f"{status} {self._answers.read(length).decode()}")
        while (size := int(self._answers.readline(), 16)) > 0:
            # A server writes whole events.
            for line in self._answers.read(size).split(b"\n"):
                if line.startswith(b"data: {"):
                    yield line.removeprefix(b"data: ")
            self._answers.readline()
        self._answers.readline()

    def _send(self, request: bytes) -> int:
        for is_last in (False, True):
            try:
                self._socket.sendall(request)
                if line := self._answers.readline():
                    return int(line.split(b" ")[1])
            except ConnectionError:
                if is_last:
                    raise
            self._answers.close()
            self._socket.close()
            self.connect()
        raise ConnectionError("the server closed the connection without an answer")

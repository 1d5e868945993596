"""A TCP proxy of a known rate: the link between a host and where its checkpoints come from.

    python -m benchmarks.rate_limited_proxy UPSTREAM_URL --bytes-per-s N [--drop-after BYTES]

What comes back from the server passes at `bytes_per_s`, all connections together, and is counted. Connections
can be dropped: each after so many bytes, or all at once. As a program it prints its endpoint and serves until
its standard input ends.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
import time
from types import TracebackType
from urllib.parse import urlsplit

BLOCK_BYTES = 64 * 2**10
# What may pass at once after a pause: a real link's buffers, not a second of its rate.
BURST_S = 0.01


class TokenBucket:
    """Lets `bytes_per_s` through, on average over any time longer than the burst. For any threads."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Wait until so many bytes may pass."""
        with self._lock:
            start = max(self._free_at, time.monotonic() - BURST_S)
            self._free_at = start + size_bytes / self.bytes_per_s
            until = self._free_at
        delay = until - time.monotonic()
        if delay > 0:
            time.sleep(delay)


class RateLimitedProxy:
    """A context manager; `bytes_per_s` and `drop_after_bytes` may be changed while it runs.

    `bytes_passed` counts what went to clients. `drop_after_bytes` ends each connection after so many of them,
    in the midst of whatever it carries. With `limits_upload` all of that is about what clients send instead.
    While `is_cut`, connections are refused and those that stand carry nothing, in either direction.
    """

    def __init__(
        self,
        upstream: str,
        *,
        bytes_per_s: float = 1e12,
        drop_after_bytes: int | None = None,
        limits_upload: bool = False,
    ) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._bucket = TokenBucket(bytes_per_s)
        self.drop_after_bytes = drop_after_bytes
        self.bytes_passed = 0
        self.is_cut = False
        self._limits_upload = limits_upload
        self._counting = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    @property
    def bytes_per_s(self) -> float:
        return self._bucket.bytes_per_s

    @bytes_per_s.setter
    def bytes_per_s(self, value: float) -> None:
        self._bucket.bytes_per_s = value

    def drop_all(self) -> None:
        """End every connection now."""
        with self._counting:
            connections, self._open = self._open, set()
        for connection in connections:
            _end(connection)

    def __enter__(self) -> RateLimitedProxy:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread in accept() is not woken by a close alone.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.drop_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._counting:
                self._open |= {client, server}
            up = self._limits_upload
            for work in ((client, server, up), (server, client, not up)):
                threading.Thread(target=self._pass, args=work, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_limited: bool) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        left = self.drop_after_bytes if is_limited else None
        with contextlib.suppress(OSError):
            while size_bytes := source.recv_into(block):
                while self.is_cut:
                    time.sleep(0.01)
                if is_limited:
                    self._bucket.take(size_bytes)
                    with self._counting:
                        self.bytes_passed += size_bytes
                    left = None if left is None else left - size_bytes
                sink.sendall(block[:size_bytes])
                if left is not None and left <= 0:
                    break
        # One side is over: the other must not wait for it.
        for connection in (source, sink):
            _end(connection)
        with self._counting:
            self._open -= {source, sink}


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("upstream")
    parser.add_argument("--bytes-per-s", type=float, required=True)
    parser.add_argument("--drop-after", type=int)
    arguments = parser.parse_args()
    with RateLimitedProxy(
        arguments.upstream, bytes_per_s=arguments.bytes_per_s, drop_after_bytes=arguments.drop_after
    ) as proxy:
        print(proxy.endpoint, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A web server of one file that answers what it is, and on demand never gives its bytes: a start that waits.

with StallingServer(file) as server:
    …  server.url as a model's source
    server.is_stalling.set()
"""

from __future__ import annotations

import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class StallingServer:
    """Serves `file` by ranges. While `is_stalling`, bodies are announced and never come."""

    def __init__(self, file: Path) -> None:
        self.is_stalling = threading.Event()
        self._ending = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(file, self.is_stalling, self._ending))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/{file.name}"

    def __enter__(self) -> StallingServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(
    file: Path, is_stalling: threading.Event, ending: threading.Event
) -> type[BaseHTTPRequestHandler]:
    size_bytes = file.stat().st_size

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if self.path != f"/{file.name}":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            asked = _RANGE.fullmatch(self.headers.get("range", ""))
            start = int(asked[1]) if asked else 0
            end = min(size_bytes, int(asked[2]) + 1) if asked and asked[2] else size_bytes
            self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
            self.send_header("content-length", str(end - start))
            self.send_header("accept-ranges", "bytes")
            self.send_header("etag", '"one"')
            if asked:
                self.send_header("content-range", f"bytes {start}-{end - 1}/{size_bytes}")
            self.end_headers()
            if body and is_stalling.is_set():
                ending.wait()
            elif body:
                with file.open("rb") as opened:
                    opened.seek(start)
                    self.wfile.write(opened.read(end - start))

        def log_message(self, *_: object) -> None:
            return

    return Handler

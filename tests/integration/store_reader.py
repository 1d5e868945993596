"""A reader of a store's handover, as an engine is one; also a program: SOCKET CHECKPOINT pins and waits."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from native_loader import ArenaView, ProgressBoard


class Reader:
    """Blocking; one connection. The first message brings the read-only arena."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(path)
        line, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
        hello = json.loads(line)
        self.arena = ArenaView(fds[0], hello["arena_bytes"])
        self._lines = self._socket.makefile()

    def ask(self, **request: str) -> dict[str, Any]:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer

    def pin_early(self, checkpoint_id: str) -> tuple[dict[str, Any], ProgressBoard | None]:
        """Pin while it loads; the load's board, None if it is over."""
        self._socket.sendall(json.dumps({"pin": checkpoint_id, "while_loading": True}).encode() + b"\n")
        line, fds, _, _ = socket.recv_fds(self._socket, 65536, 1)
        answer: dict[str, Any] = json.loads(line)
        if not answer.get("is_loading"):
            return answer, None
        board = ProgressBoard.attach(fds[0])
        os.close(fds[0])
        return answer, board

    def bytes_of(self, checkpoint_id: str) -> list[bytes]:
        """Pin, and copy every partition out of the arena."""
        extents = self.ask(pin=checkpoint_id)["extents"]
        return [bytes(self.arena.buffer(extent["offset"], extent["size_bytes"])) for extent in extents]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


if __name__ == "__main__":
    held = Reader(sys.argv[1])
    print(json.dumps(held.ask(pin=sys.argv[2])), flush=True)
    time.sleep(600)

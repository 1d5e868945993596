"""Listens at the fault points of a running platform, and acts at one of them while a process stands there.

See firstlight/fault_points.py. Points nobody waits for are answered at once.
"""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True, slots=True)
class Reached:
    """A process that stands at a point."""

    pid: int
    point: str
    of: str


@dataclass(slots=True, eq=False)
class Trap:
    """`act` is called once, by a thread of the driver's own, while the first process to come stands there."""

    point: str
    act: Callable[[Reached], None]
    is_wanted: Callable[[Reached], bool]
    sprung: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None


class FaultDriver:
    """Use as a context manager; `socket` is what the platform's FIRSTLIGHT_FAULT_SOCKET must name."""

    def __init__(self) -> None:
        # A path of its own: that of a Unix socket may have about a hundred bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="faults-"))
        self.socket = str(self._directory / "faults.sock")
        self._lock = threading.Lock()
        self._traps: list[Trap] = []
        driver = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline()
                if line:
                    driver._reached(Reached(**json.loads(line)))
                    self.wfile.write(b"go\n")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

            # Any: as socketserver declares them.
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A process that was killed where it stood does not hear the answer."""

        self._server = Server(self.socket, Handler)

    def __enter__(self) -> FaultDriver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disarm()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def arm(
        self,
        point: str,
        act: Callable[[Reached], None],
        *,
        is_wanted: Callable[[Reached], bool] = lambda reached: True,
    ) -> Trap:
        trap = Trap(point, act, is_wanted)
        with self._lock:
            self._traps.append(trap)
        return trap

    def disarm(self) -> None:
        with self._lock:
            self._traps.clear()

    def _reached(self, reached: Reached) -> None:
        with self._lock:
            trap = next((t for t in self._traps if t.point == reached.point and t.is_wanted(reached)), None)
            if trap is not None:
                self._traps.remove(trap)
        if trap is None:
            return
        try:
            trap.act(reached)
        except Exception as failure:  # noqa: BLE001 - a thread's outermost; told by the test that armed it
            trap.failure = failure
        finally:
            trap.sprung.set()

"""The zygote, kept alive: engines are forked from whichever one lives now."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from firstlight.domain.errors import EngineGone
from gpu_worker.engine.client import EngineHandle, Nursery
from gpu_worker.engine.control import EngineConfig
from gpu_worker.host.backoff import Backoff

ZYGOTE = (sys.executable, "-m", "gpu_worker.engine.zygote")

log = logging.getLogger("host.zygote")


class KeptZygote:
    """Starts a zygote, and another when it ends. Engines of an ended one serve on.

    Planners of conversions are had at `planner_socket` from `start` on: who comes early waits. None: nowhere.
    """

    def __init__(
        self,
        socket_dir: Path,
        *,
        planner_socket: Path | None = None,
        executable: Sequence[str] = ZYGOTE,
    ) -> None:
        self._socket_dir = socket_dir
        self._executable = executable
        self._planner_socket = planner_socket
        self._planners: socket.socket | None = None
        self._names = count(1)
        self._nursery: Nursery | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        # A nursery whose zygote died still holds the connections of its engines.
        self._old: list[Nursery] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._nursery.zygote_pid if self._nursery is not None and self._ready.is_set() else None

    def start(self) -> None:
        if self._planner_socket is not None:
            self._planners = _listen(self._planner_socket)
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def spawn(self, config: EngineConfig) -> EngineHandle:
        """Fork one engine, waiting for a zygote if there is none now. Raises: EngineGone."""
        await self._ready.wait()
        assert self._nursery is not None
        forking = asyncio.ensure_future(self._nursery.spawn(config))
        ending = asyncio.ensure_future(self._ended.wait())
        try:
            # Not left to the connection's end alone: a forked engine may hold the zygote's socket open.
            await asyncio.wait([forking, ending], return_when=asyncio.FIRST_COMPLETED)
            if not forking.done():
                raise EngineGone("the engine zygote ended before it forked")
            return forking.result()
        finally:
            forking.cancel()
            ending.cancel()

    async def close(self) -> None:
        """Kill every engine and the zygote."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        nurseries = [*self._old, *([self._nursery] if self._nursery is not None else [])]
        for nursery in nurseries:
            await nursery.close()
        if self._planners is not None and self._planner_socket is not None:
            self._planners.close()
            self._planner_socket.unlink(missing_ok=True)

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            path = self._socket_dir / f"engines-{next(self._names)}.sock"
            self._nursery = await Nursery.start(
                socket_path=path, executable=self._executable, planners=self._planners
            )
            await self._watch(self._nursery)
            self._ready.clear()
            # A fresh event for the next zygote: whoever waits for this one's end holds this one.
            ended, self._ended = self._ended, asyncio.Event()
            ended.set()
            self._old.append(self._nursery)
            self._nursery = None
            lived_s = time.monotonic() - began
            delay_s = backoff.after(lived_s=lived_s)
            log.warning("zygote ended after_s=%.1f restart_in_s=%.1f", lived_s, delay_s)
            await asyncio.sleep(delay_s)

    async def _watch(self, nursery: Nursery) -> None:
        began = time.monotonic()
        try:
            await nursery.wait_ready()
        except EngineGone as failure:
            log.error("zygote did not start: %s", failure.message)
            return
        log.info("zygote ready pid=%d in_s=%.1f", nursery.zygote_pid, time.monotonic() - began)
        self._ready.set()
        await nursery.wait_zygote_exit()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen()
    # Two zygotes may hold it, an old one that ends and its successor: neither must hang in an accept.
    listening.setblocking(False)
    return listening
